"""A repository of cc_library targets for system libraries, with link flags from pkg-config."""

def _flags_of(ctx, modules):
    result = ctx.execute(["pkg-config", "--libs"] + modules)
    if result.return_code != 0:
        fail("pkg-config does not know {}: run deploy/install.sh first.\n{}".format(modules, result.stderr))
    return [flag for flag in result.stdout.strip().split(" ") if flag]

def _library(name, flags):
    return """
cc_library(
    name = "{name}",
    linkopts = {flags},
    visibility = ["//visibility:public"],
)
""".format(name = name, flags = flags)

def _pkg_config_repository_impl(ctx):
    build = ""
    for name, modules in ctx.attr.modules.items():
        build += _library(name, _flags_of(ctx, modules))
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
