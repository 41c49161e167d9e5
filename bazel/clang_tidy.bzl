"""Runs clang-tidy on the sources of C++ targets: `bazel build --config=clang-tidy //...`.

It is an aspect, so that BUILD files need not mention it. Each source of a cc_* rule is one action, with the rule's own
include paths and definitions, and its result is kept until something it includes changes. Settings are in .clang-tidy;
a finding fails the build. Other repositories, generated code (compiled with -w) and targets tagged "no-clang-tidy" are
left out.
"""

_SOURCES = ["cc", "cpp", "cxx"]

# Tests do these on purpose: they look at moved-from objects, and prefer plain code to fast code.
_NOT_IN_TESTS = ["bugprone-use-after-move", "performance-*"]

def _compile_flags(rule, context):
    flags = ["-x", "c++", "-std=c++20"]
    flags += ["-D" + define for define in context.defines.to_list() + context.local_defines.to_list()]
    flags += ["-iquote" + path for path in context.quote_includes.to_list()]
    flags += ["-isystem" + path for path in context.system_includes.to_list()]
    flags += ["-I" + path for path in context.includes.to_list()]
    return flags + [copt for copt in rule.attr.copts if copt.startswith(("-I", "-D", "-W")) and copt != "-Werror"]

def _check(ctx, source, context, config):
    passed = ctx.actions.declare_file(ctx.rule.attr.name + "." + source.basename + ".clang-tidy")
    arguments = ctx.actions.args()
    arguments.add(passed)
    arguments.add("--config-file=" + config.path)
    arguments.add("--quiet")
    if ctx.rule.attr.testonly:
        arguments.add("--checks=" + ",".join(["-" + check for check in _NOT_IN_TESTS]))
    arguments.add(source)
    arguments.add("--")
    arguments.add_all(_compile_flags(ctx.rule, context))
    ctx.actions.run_shell(
        # clang-tidy counts suppressed findings even when it reports none, and names files in the sandbox. This shows
        # findings only, under the source tree's names.
        command = 'out="$1"; shift; clang-tidy "$@" >"$out" 2>&1 && : >"$out" && exit 0; ' +
                  'sed -e "s|$PWD/||g" -e "/ warnings generated/d" "$out"; exit 1',
        arguments = [arguments],
        inputs = depset([source, config], transitive = [context.headers]),
        outputs = [passed],
        mnemonic = "ClangTidy",
        progress_message = "Checking " + source.short_path,
        use_default_shell_env = True,
    )
    return passed

def _clang_tidy_aspect_impl(target, ctx):
    if CcInfo not in target or not hasattr(ctx.rule.files, "srcs") or not hasattr(ctx.rule.attr, "copts"):
        return []
    if target.label.workspace_root or "-w" in ctx.rule.attr.copts or "no-clang-tidy" in ctx.rule.attr.tags:
        return []
    context = target[CcInfo].compilation_context
    # The sources of a unity build are its textual headers.
    files = ctx.rule.files.srcs + getattr(ctx.rule.files, "textual_hdrs", [])
    sources = [file for file in files if file.extension in _SOURCES and file.is_source]
    passed = [_check(ctx, source, context, ctx.file._config) for source in sources]
    return [OutputGroupInfo(clang_tidy = depset(passed))]

clang_tidy_aspect = aspect(
    implementation = _clang_tidy_aspect_impl,
    attrs = {"_config": attr.label(default = "//:.clang-tidy", allow_single_file = True)},
)
