"""Runs clang-tidy on the sources of C++ targets: `bazel build --config=clang-tidy //...`.

It is an aspect, so that BUILD files need not mention it. Each source of a cc_* rule is one action, with the rule's own
include paths and definitions, and its result is kept until something it includes changes. Settings are in .clang-tidy;
a finding fails the build. Other repositories, generated code (compiled with -w) and targets tagged "no-clang" are
left out.

Single sources are checked with --aspects=//bazel:clang_tidy.bzl%clang_tidy_aspect and --output_groups=clang_tidy/FILE,
where FILE is the path in the repository, in place of --config=clang-tidy. tests/run.sh checks changed sources that way.
"""

load(":source_check.bzl", "compile_flags", "headers_of", "is_checked", "sources_of", "warning_flags")

# Tests do these on purpose: they look at moved-from objects, and prefer plain code to fast code.
_NOT_IN_TESTS = ["bugprone-use-after-move", "performance-*"]

def _check(ctx, source, context, headers):
    config = ctx.file._config
    passed = ctx.actions.declare_file(ctx.rule.attr.name + "." + source.basename + ".clang-tidy")
    arguments = ctx.actions.args()
    arguments.add(passed)
    arguments.add("--config-file=" + config.path)
    arguments.add("--quiet")
    if ctx.rule.attr.testonly:
        arguments.add("--checks=" + ",".join(["-" + check for check in _NOT_IN_TESTS]))
    arguments.add(source)
    arguments.add("--")
    arguments.add_all(compile_flags(ctx.rule, context) + warning_flags(ctx.rule))
    ctx.actions.run_shell(
        # clang-tidy counts suppressed findings even when it reports none, and names files in the sandbox. This shows
        # findings only, under the source tree's names.
        command = 'out="$1"; shift; clang-tidy "$@" >"$out" 2>&1 && : >"$out" && exit 0; ' +
                  'sed -e "s|$PWD/||g" -e "/ warnings generated/d" "$out"; exit 1',
        arguments = [arguments],
        inputs = depset([source, config] + headers),
        outputs = [passed],
        mnemonic = "ClangTidy",
        progress_message = "Checking " + source.short_path,
        use_default_shell_env = True,
    )
    return passed

def _clang_tidy_aspect_impl(target, ctx):
    if not is_checked(target, ctx.rule):
        return []
    context = target[CcInfo].compilation_context
    headers = headers_of(ctx.rule, context)
    groups = {}
    for source in sources_of(ctx.rule):
        groups["clang_tidy/" + source.short_path] = depset([_check(ctx, source, context, headers)])
    return [OutputGroupInfo(clang_tidy = depset(transitive = groups.values()), **groups)]

clang_tidy_aspect = aspect(
    implementation = _clang_tidy_aspect_impl,
    attrs = {"_config": attr.label(default = "//:.clang-tidy", allow_single_file = True)},
)
