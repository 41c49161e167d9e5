"""Where every external repository comes from: Debian packages on disk and CUDA's folder, never the network.

Bazel 4.2.3 resolves a few repositories even for a plain C++ build. Each is either Debian's own copy or a small in-tree
one, so a build needs nothing but the packages that deploy/install.sh names. CUDA is optional.
"""

load("//bazel:cuda_repository.bzl", "cuda_repository")
load("//bazel:pkg_config.bzl", "pkg_config_repository")

_BAZEL_RULES = "/usr/share/bazel/rules"

def switchyard_repositories():
    # Debian's rules_cc needs a newer Bazel; ours re-exports the native rules.
    native.local_repository(name = "rules_cc", path = "bazel/rules_cc")
    native.local_repository(name = "remote_coverage_tools", path = "bazel/remote_coverage_tools")
    native.local_repository(name = "rules_java", path = _BAZEL_RULES + "/java")
    native.local_repository(name = "rules_proto", path = _BAZEL_RULES + "/proto")
    native.local_repository(name = "bazel_skylib", path = "/usr/share/bazel/tools/skylib")

    cuda_repository(name = "cuda")

    # name = [pkg-config modules], or link flags where a package ships no .pc file.
    pkg_config_repository(
        name = "system",
        modules = {
            "absl": [
                "absl_flat_hash_map",
                "absl_span",
                "absl_status",
                "absl_statusor",
                "absl_strings",
                "absl_synchronization",
                "absl_time",
            ],
            "grpc": ["grpc++", "protobuf"],
            "openssl": ["openssl"],
            "protobuf": ["protobuf"],
            "prometheus": ["prometheus-cpp-core"],
            "spdlog": ["spdlog"],
        },
        flags = {
            "benchmark": ["-lbenchmark", "-lpthread"],
            "boost": [],
            "cli11": [],
            "dnnl": ["-ldnnl", "-lgomp"],
            "gloo": ["-lgloo"],
            "gtest": ["-lgmock", "-lgtest", "-lpthread"],
            "json": [],
            "openblas": ["-lopenblas"],
            "reflection": ["-lgrpc++_reflection"],
            "xxhash": [],
        },
    )
