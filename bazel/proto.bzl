"""Generates C++ from one .proto with the system's protoc and gRPC plugin."""

def cc_proto(name, src, grpc = False, small = False, imports = [], deps = [], visibility = None):
    """A cc_library of the messages, and of the service stubs when grpc is set.

    Args:
      name: the library's name.
      src: one .proto file of this package.
      grpc: whether to generate the gRPC service classes too.
      small: for messages that are seldom read and written: less code, which compiles faster and runs slower.
      imports: the .proto files of this package that it imports, all of them.
      deps: the cc_proto libraries of those.
      visibility: as for every rule.
    """
    stem = src[:-len(".proto")]
    outs = [stem + ".pb.h", stem + ".pb.cc"]
    flags = "--cpp_out=" + ("code_size:" if small else "") + "$(GENDIR)"
    if grpc:
        outs += [stem + ".grpc.pb.h", stem + ".grpc.pb.cc"]
        flags += " --grpc_out=$(GENDIR) --plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin"
    native.genrule(
        name = name + "_generate",
        srcs = [src] + imports,
        outs = outs,
        cmd = "protoc -I. " + flags + " $(location " + src + ")",
    )
    native.cc_library(
        name = name,
        hdrs = [out for out in outs if out.endswith(".h")],
        srcs = [out for out in outs if out.endswith(".cc")],
        copts = ["-w"],
        deps = deps + ["@system//:grpc" if grpc else "@system//:protobuf"],
        visibility = visibility,
    )
