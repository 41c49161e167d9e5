"""A repository of cc_library targets for system libraries, with definitions and link flags from pkg-config."""

def _pkg_config(ctx, option, modules):
    result = ctx.execute(["pkg-config", option] + modules)
    if result.return_code != 0:
        fail("pkg-config does not know {}: run deploy/install.sh first.\n{}".format(modules, result.stderr))
    return [flag for flag in result.stdout.strip().split(" ") if flag]

def _defines_of(ctx, modules):
    # Without its definition, spdlog compiles itself and {fmt} into every unit that logs.
    return [flag[len("-D"):] for flag in _pkg_config(ctx, "--cflags", modules) if flag.startswith("-D")]

def _library(name, flags, defines = []):
    return """
cc_library(
    name = "{name}",
    defines = {defines},
    linkopts = {flags},
    visibility = ["//visibility:public"],
)
""".format(name = name, defines = defines, flags = flags)

def _pkg_config_repository_impl(ctx):
    build = ""
    for name, modules in ctx.attr.modules.items():
        build += _library(name, _pkg_config(ctx, "--libs", modules), _defines_of(ctx, modules))
    for name, flags in ctx.attr.flags.items():
        build += _library(name, flags)
    ctx.file("BUILD", build)

pkg_config_repository = repository_rule(
    implementation = _pkg_config_repository_impl,
    local = True,
    attrs = {
        "modules": attr.string_list_dict(doc = "Target name to pkg-config modules."),
        "flags": attr.string_list_dict(doc = "Target name to linker flags, for packages without a .pc file."),
    },
)
