"""The native API without generated code: messages and calls are made from the answers of server reflection.

At build time, `python -m grpc_tools.protoc` on proto/switchyard.proto generates the same messages and calls.
"""

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from connection import read_token

PACKAGE = "switchyard.v1"
DATA_TYPES = {"float64": 1, "float32": 2, "float16": 3, "bfloat16": 4}


class NativeClient:
    """Has each call of the service as a method, and makes its messages by name."""

    def __init__(self, channel):
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        for method in self._pool.FindServiceByName(f"{PACKAGE}.Switchyard").methods:
            kind = channel.stream_stream if method.client_streaming else channel.unary_unary
            call = kind(f"/{PACKAGE}.Switchyard/{method.name}",
                        request_serializer=lambda message: message.SerializeToString(),
                        response_deserializer=GetMessageClass(method.output_type).FromString)
            setattr(self, method.name, call)

    def message(self, name, **fields):
        return GetMessageClass(self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))(**fields)

    def request(self, model, layer, rows, **fields):
        """A ForwardRequest with rows [rows, D] in one of DATA_TYPES."""
        return self.message("ForwardRequest", model=model, layer=layer, dtype=DATA_TYPES[rows.dtype.name],
                            num_rows=len(rows), rows=rows.tobytes(), **fields)


def connect_native(arguments):
    """A channel with the security that the flags of connection.py ask for."""
    options = [("grpc.max_receive_message_length", -1)]

    def read(path):
        if path is None:
            return None
        with open(path, "rb") as file:
            return file.read()
    files = [read(path) for path in (arguments.tls_ca, arguments.tls_key, arguments.tls_cert)]
    if not (arguments.tls or any(files)):
        if arguments.token_file:  # gRPC sends tokens over TLS only
            raise SystemExit("--token_file: expected --tls or one of its flags too")
        return grpc.insecure_channel(arguments.target, options)
    credentials = grpc.ssl_channel_credentials(*files)
    if arguments.token_file:
        token = grpc.access_token_call_credentials(read_token(arguments.token_file))
        credentials = grpc.composite_channel_credentials(credentials, token)
    return grpc.secure_channel(arguments.target, credentials, options)
