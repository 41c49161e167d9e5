"""CUDA targets, which exist only where CUDA does (see cuda_repository.bzl).

  cuda_library                        .cu files, compiled by nvcc; cc rules may depend on it.
  sy_cuda_cc_library, _binary, _test,
  _benchmark                          the rules of cc.bzl for C++ that needs CUDA. Tests are tagged "gpu".

A target that is built with and without CUDA depends on such targets with `deps = [...] + CUDA_DEPS([...])`. No source
asks whether CUDA is there: a library that only builds with CUDA have registers what it brings (worker/accelerators.h).
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@cuda//:defs.bzl", "CUDA_HOME", "HAS_CUDA")
load("//bazel:cc.bzl", "sy_cc_benchmark", "sy_cc_binary", "sy_cc_library", "sy_cc_test")

# Machine code for A100, H100 and their relatives, and code that drivers translate for later GPUs.
PORTABLE = ["sm_80", "sm_90", "compute_90"]

# wgmma, TMA with multicast, setmaxnreg: instructions that only Hopper has.
HOPPER = ["sm_90a"]

# Tests and benchmarks of the GPU are listed in deploy/BUILD, and run where the bundle is unpacked.
_TO_THE_BUNDLE = ["//deploy:__pkg__"]

def CUDA_DEPS(deps):
    return deps if HAS_CUDA else []

_NVCC = CUDA_HOME + "/bin/nvcc"

_FLAGS = [
    "-ccbin=g++",
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "--expt-relaxed-constexpr",
    "-Werror=all-warnings",
    # The warnings of cc.bzl.
    "-Xcompiler=-fPIC,-Wall,-Wextra,-Wno-sign-compare,-Wno-missing-field-initializers,-fdiagnostics-color=never",
]

def _gencode(arch):
    virtual = "compute_" + arch[arch.find("_") + 1:]
    return "-gencode=arch={},code={}".format(virtual, arch)

def _context_flags(context):
    flags = ["-D" + define for define in context.defines.to_list()]
    flags += ["-I" + path for path in context.quote_includes.to_list() + context.includes.to_list()]
    return flags + ["-isystem=" + path for path in context.system_includes.to_list()]

def _compile(ctx, source, context):
    object = ctx.actions.declare_file("_objs/{}/{}.o".format(ctx.label.name, source.basename[:-len(".cu")]))
    arguments = ctx.actions.args()
    arguments.add_all(_FLAGS + [_gencode(arch) for arch in ctx.attr.archs])
    if ctx.var["COMPILATION_MODE"] == "opt":
        arguments.add("-DNDEBUG")
    arguments.add_all(["-D" + define for define in ctx.attr.local_defines])
    arguments.add_all(_context_flags(context))
    arguments.add_all(ctx.attr.copts)
    arguments.add_all(["-c", source, "-o", object])
    ctx.actions.run(
        executable = _NVCC,
        arguments = [arguments],
        inputs = depset([source, ctx.file._version], transitive = [context.headers]),
        outputs = [object],
        mnemonic = "Nvcc",
        progress_message = "Compiling " + source.short_path,
        use_default_shell_env = True,
    )
    return object

def _link(ctx, objects, linking_contexts):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(ctx = ctx, cc_toolchain = toolchain)
    context, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        cc_toolchain = toolchain,
        feature_configuration = features,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = depset(objects),
            pic_objects = depset(objects),
        ),
        linking_contexts = linking_contexts,
        disallow_dynamic_library = True,
    )
    return context

def _cuda_library_impl(ctx):
    own = CcInfo(compilation_context = cc_common.create_compilation_context(headers = depset(ctx.files.hdrs)))
    deps = cc_common.merge_cc_infos(cc_infos = [own] + [dep[CcInfo] for dep in ctx.attr.deps])
    compilation = deps.compilation_context
    objects = [_compile(ctx, source, compilation) for source in ctx.files.srcs if source.extension == "cu"]
    linking = _link(ctx, objects, [deps.linking_context])
    return [
        DefaultInfo(files = depset(objects)),
        CcInfo(compilation_context = compilation, linking_context = linking),
    ]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"], mandatory = True),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "archs": attr.string_list(
            default = PORTABLE,
            doc = "sm_N for machine code, compute_N for code that a newer GPU's driver translates.",
        ),
        "copts": attr.string_list(doc = "More flags for nvcc."),
        "local_defines": attr.string_list(),
        "_version": attr.label(default = "@cuda//:version.txt", allow_single_file = True),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
    provides = [CcInfo],
)

def _with_runtime(deps):
    runtime = "@cuda//:cudart"
    return deps if runtime in deps else deps + [runtime]

def cuda_library(name, deps = [], **kwargs):
    if HAS_CUDA:
        _cuda_library(name = name, deps = _with_runtime(deps), **kwargs)

def sy_cuda_cc_library(name, deps = [], **kwargs):
    if HAS_CUDA:
        sy_cc_library(name = name, deps = _with_runtime(deps), **kwargs)

def sy_cuda_cc_binary(name, deps = [], **kwargs):
    if HAS_CUDA:
        sy_cc_binary(name = name, deps = _with_runtime(deps), **kwargs)

def sy_cuda_cc_test(name, deps = [], tags = [], visibility = _TO_THE_BUNDLE, **kwargs):
    if HAS_CUDA:
        sy_cc_test(
            name = name,
            deps = _with_runtime(deps),
            tags = tags + [tag for tag in ["gpu"] if tag not in tags],
            visibility = visibility,
            **kwargs
        )

def sy_cuda_cc_benchmark(name, deps = [], visibility = _TO_THE_BUNDLE, **kwargs):
    if HAS_CUDA:
        sy_cc_benchmark(name = name, deps = _with_runtime(deps), visibility = visibility, **kwargs)
