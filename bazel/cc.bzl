"""cc_* rules with the project's warnings: all of the project's own code compiles with them as errors."""

_COPTS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-sign-compare",
    "-Wno-missing-field-initializers",
]

def sy_cc_library(name, copts = [], **kwargs):
    native.cc_library(name = name, copts = _COPTS + copts, **kwargs)

def sy_cc_binary(name, copts = [], **kwargs):
    native.cc_binary(name = name, copts = _COPTS + copts, **kwargs)

def sy_cc_test(name, copts = [], deps = [], main = True, **kwargs):
    """A GoogleTest test. main = False for a test that has a main() of its own."""
    native.cc_test(
        name = name,
        copts = _COPTS + copts,
        deps = deps + ["@system//:gtest"] + (["//base:test_main"] if main else []),
        **kwargs
    )

def sy_cc_benchmark(name, copts = [], deps = [], **kwargs):
    """A Google Benchmark binary: built with everything, run by hand or by `switchyard` scripts, never a timed test."""
    native.cc_binary(
        name = name,
        copts = _COPTS + copts,
        deps = deps + ["@system//:benchmark"],
        tags = ["benchmark"],
        testonly = True,
        **kwargs
    )
