"""cc_* rules with the project's warnings: all of the project's own code compiles with them as errors."""

load(":unity.bzl", "unity_source")

_COPTS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-sign-compare",
    "-Wno-missing-field-initializers",
]

def sy_cc_library(name, copts = [], srcs = [], textual_hdrs = [], unity = True, **kwargs):
    """A library whose sources are compiled together, as one translation unit.

    Most of a source's compile time goes into the headers that it shares with its neighbours, so a unit of ten sources
    takes little more than one of them. Each source must still compile alone: clang-tidy checks it so.

    Args:
      name: the library's name.
      copts: compiler flags beside the project's warnings.
      srcs: sources and private headers, files of this package.
      textual_hdrs: as for cc_library.
      unity: False compiles each source alone, because their names collide or a change to one should not recompile all.
      **kwargs: as for cc_library.
    """
    units = [source for source in srcs if source.endswith(".cc")]
    if unity and len(units) > 1:
        unity_source(name = name + "_unity", srcs = units, out = name + ".unity.cc")
        srcs = [source for source in srcs if source not in units] + [name + ".unity.cc"]
        textual_hdrs = textual_hdrs + units

        # GCC takes types with members of anonymous namespaces for an oversight unless they are in the file it compiles.
        copts = copts + ["-Wno-subobject-linkage"]
    native.cc_library(name = name, copts = _COPTS + copts, srcs = srcs, textual_hdrs = textual_hdrs, **kwargs)

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
