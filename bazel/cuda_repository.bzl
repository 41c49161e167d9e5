"""The repository @cuda: NVIDIA's compiler, headers and libraries where CUDA_HOME says, or nothing at all.

CUDA is optional. Where it is complete, @cuda//:defs.bzl has HAS_CUDA = True and these targets exist: cudart (linked
statically), cublas, nccl (both shared), driver (cuda.h alone: the driver's entry points are looked up at run time, so
that programs start on machines without a driver). Elsewhere HAS_CUDA is False, WHY_NO_CUDA says what is missing, and
the macros of cuda.bzl declare nothing.
"""

_DEFAULT_HOME = "/usr/local/cuda"

_LIBRARY_FOLDERS = ["lib64", "lib", "targets/x86_64-linux/lib"]

_DEFS = """HAS_CUDA = {has_cuda}
WHY_NO_CUDA = {why_no_cuda}
CUDA_HOME = {home}
"""

# The project's C++ includes these headers: of the runtime, the driver, cuBLAS and NCCL. nvcc finds all others by
# itself.
_BUILD = """package(default_visibility = ["//visibility:public"])

exports_files([
    "reason.txt",
    "version.txt",
])

cc_library(
    name = "headers",
    hdrs = glob(
        [
            "include/*.h",
            "include/*.hpp",
            "include/crt/*",
            "include/nccl_device/**",
            "include/nv/**",
        ],
        exclude = ["include/{}*".format(other) for other in [
            "cudnn",
            "cufft",
            "cupti",
            "curand",
            "cusolver",
            "cusparse",
            "generated_",
            "npp",
            "nvperf",
        ]],
    ),
    includes = ["include"],
)
"""

_LIBRARY = """
cc_library(
    name = "{name}",
    linkopts = {linkopts},
    deps = [":headers"],
)
"""

def _first_existing(ctx, paths):
    for path in paths:
        if ctx.path(path).exists:
            return path
    return None

def _find_library(ctx, home, name, elsewhere = []):
    return _first_existing(ctx, [home + "/" + folder + "/" + name for folder in _LIBRARY_FOLDERS] + elsewhere)

def _find(ctx, home):
    """Paths of everything the build needs; None for a file that is missing."""
    found = {file: _first_existing(ctx, [home + "/" + file]) for file in [
        "bin/nvcc",
        "include/cuda.h",
        "include/cuda_runtime.h",
        "include/cublas_v2.h",
    ]}
    for library in ["libcudart_static.a", "libcublas.so"]:
        found[library] = _find_library(ctx, home, library)

    # NVIDIA's Debian packages put NCCL elsewhere.
    found["include/nccl.h"] = _first_existing(ctx, [home + "/include/nccl.h", "/usr/include/nccl.h"])
    found["libnccl.so"] = _find_library(ctx, home, "libnccl.so", ["/usr/lib/x86_64-linux-gnu/libnccl.so"])
    return found

def _shared(path):
    # The run path is for programs that run where they were built; deploy:bundle gives its programs other run paths.
    return [path, "-Wl,-rpath," + path[:path.rfind("/")]]

def _version(ctx, nvcc):
    # Every nvcc action depends on the version, because nvcc's own files, thousands of them, are not inputs one by one.
    result = ctx.execute([nvcc, "--version"])
    if result.return_code != 0:
        fail("{} --version: {}".format(nvcc, result.stderr))
    return result.stdout

def _cuda_repository_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME", "") or _DEFAULT_HOME
    found = _find(ctx, home)
    missing = [what for what, path in found.items() if not path]
    why = "CUDA_HOME is {}, which has no {}".format(home, ", ".join(missing)) if missing else ""
    ctx.file("defs.bzl", _DEFS.format(has_cuda = not missing, why_no_cuda = repr(why), home = repr(home)))
    ctx.file("reason.txt", why)
    if missing:
        ctx.file("BUILD")
        return
    libraries = {
        "cudart": [found["libcudart_static.a"], "-ldl", "-lrt", "-lpthread"],
        "cublas": _shared(found["libcublas.so"]),
        "nccl": _shared(found["libnccl.so"]),
        "driver": [],
    }
    ctx.file("version.txt", "{}\n{}".format(home, _version(ctx, found["bin/nvcc"])))
    ctx.symlink(home + "/include", "include")
    ctx.file("BUILD", _BUILD + "".join([
        _LIBRARY.format(name = name, linkopts = repr(linkopts))
        for name, linkopts in libraries.items()
    ]))

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    local = True,
    environ = ["CUDA_HOME"],
)
