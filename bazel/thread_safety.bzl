"""Checks that locks are held where annotations demand it: `bazel build --config=thread-safety //...`.

An aspect, like clang_tidy.bzl: clang's -Wthread-safety reads ABSL_GUARDED_BY, ABSL_EXCLUSIVE_LOCKS_REQUIRED and their
like, which GCC ignores, and -Wthread-safety-beta reads the orders of locks, ABSL_ACQUIRED_BEFORE and _AFTER. A finding
fails the build. Every other warning of clang is off. One action reads what one compiler call compiles, for a library
mostly the unit of all its sources, and its result is kept until something it includes changes.

Left out are targets that do not depend on base/mutex.h, targets that are testonly, and what source_check.bzl leaves
out.
"""

load(":source_check.bzl", "compile_flags", "headers_of", "is_checked", "units_of")

_MUTEX = "base/mutex.h"

# clang lets -w win over every -W, so the other warnings are turned off by name.
_WARNINGS = [
    "-Wno-everything",
    "-Wthread-safety",
    "-Wthread-safety-beta",
    "-Werror",
]

def _check(ctx, unit, context, headers):
    passed = ctx.actions.declare_file(ctx.rule.attr.name + "." + unit.basename + ".thread-safety")
    arguments = ctx.actions.args()
    arguments.add(passed)
    arguments.add_all(["-fsyntax-only", "-fno-caret-diagnostics"] + compile_flags(ctx.rule, context) + _WARNINGS)
    arguments.add(unit)
    ctx.actions.run_shell(
        command = 'out="$1"; shift; clang++ "$@" && : >"$out"',
        arguments = [arguments],
        inputs = depset([unit] + headers),
        outputs = [passed],
        mnemonic = "ThreadSafety",
        progress_message = "Checking the locks of " + unit.short_path,
        use_default_shell_env = True,
    )
    return passed

def _thread_safety_aspect_impl(target, ctx):
    if not is_checked(target, ctx.rule) or ctx.rule.attr.testonly:
        return []
    context = target[CcInfo].compilation_context
    headers = headers_of(ctx.rule, context)
    if not [header for header in headers if header.short_path == _MUTEX]:
        return []
    passed = [_check(ctx, unit, context, headers) for unit in units_of(ctx.rule)]
    return [OutputGroupInfo(thread_safety = depset(passed))]

thread_safety_aspect = aspect(implementation = _thread_safety_aspect_impl)
