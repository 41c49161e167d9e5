"""The wire contract: everything that our .proto files declare is the same in the published protocol."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import model_config_pb2, service_pb2

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def ours(server):
    with grpc.insecure_channel(server.target) as channel:
        yield DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(SERVICE)


def published_message(name):
    return service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(name)


def files_of(file):
    """A file and the files that it imports."""
    return [file, *file.dependencies]


def messages_of(file):
    """All messages of a file and of its imports, nested ones included."""
    waiting = [message for each in files_of(file) for message in each.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        yield message
        waiting.extend(message.nested_types)


def facts(field):
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return (field.name, field.type, field.is_repeated, kind.full_name if kind else None, oneof.name if oneof else None)


def test_every_method_has_the_published_form(ours):
    published = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    def form(method):
        return (method.input_type.full_name, method.output_type.full_name, method.client_streaming,
                method.server_streaming)
    assert {m.name: form(m) for m in ours.methods} == {m.name: form(m) for m in published.methods}


def test_every_field_has_the_published_number_and_type(ours):
    count = 0
    for message in messages_of(ours.file):
        theirs = published_message(message.full_name)
        for field in message.fields:
            assert facts(field) == facts(theirs.fields_by_number[field.number]), message.full_name
            count += 1
    assert count > 200


def test_only_the_configuration_leaves_fields_out(ours):
    configuration = set(model_config_pb2.DESCRIPTOR.message_types_by_name)
    for message in messages_of(ours.file):
        if message.full_name.split(".")[1] in configuration:
            continue
        theirs = published_message(message.full_name)
        assert {f.number for f in message.fields} == {f.number for f in theirs.fields}, message.full_name


def test_every_enum_value_has_the_published_number(ours):
    enums = [enum for file in files_of(ours.file) for enum in file.enum_types_by_name.values()]
    enums += [enum for message in messages_of(ours.file) for enum in message.enum_types]
    assert len(enums) > 4
    for enum in enums:
        theirs = model_config_pb2.DESCRIPTOR.pool.FindEnumTypeByName(enum.full_name)
        assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in theirs.values}
