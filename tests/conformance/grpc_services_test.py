"""The standard services that the server has beside the APIs: grpc.health.v1 and server reflection."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from conftest import LAYER_NAMES, MODEL, Server

SERVICES = ["inference.GRPCInferenceService", "switchyard.v1.Switchyard"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as opened:
        yield opened


@pytest.mark.parametrize("name", ["", *SERVICES, *(f"jargon-moe.{layer}" for layer in LAYER_NAMES)])
def test_health_of_every_name(channel, name):
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING


def test_health_of_an_unknown_name(channel):
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="colour"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_watchers_see_the_drain():
    server = Server(f"--model=m={MODEL}", "--local_workers=1")
    with grpc.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="m.0"), timeout=60)
        statuses = iter(watch)
        assert next(statuses).status == SERVING
        server.terminate()
        assert next(statuses).status == NOT_SERVING
    assert server.wait() == 0


def test_reflection_lists_and_describes_the_services(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(SERVICES) <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    assert len(service.methods) == 20
    request = service.methods_by_name["ModelInfer"].input_type
    assert request.fields_by_name["raw_input_contents"].number == 7
