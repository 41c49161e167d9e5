"""An unmodified tritonclient loads, reloads and unloads models at run time, also while other clients call them."""

import os
import pathlib
import shutil
import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from conftest import LAYER_NAMES, MODEL, Server

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ALL_LAYERS = [f"jargon.{layer}" for layer in LAYER_NAMES]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder with the models "jargon" and "spare", and a damaged one."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("jargon", "spare", "damaged"):
        shutil.copytree(MODEL, folder / name, copy_function=shutil.copyfile)
    for weights in (folder / "damaged").glob("*.safetensors"):
        if weights.name != "golden.safetensors":
            os.truncate(weights, weights.stat().st_size - 1000)
    return folder


@pytest.fixture(scope="module")
def own_server(repository):
    running = Server(f"--model_repository={repository}", "--local_workers=2", "--compute_dtype=fp32")
    yield running
    running.terminate()
    assert running.wait() == 0, running.log()


@pytest.fixture(scope="module")
def own_client(own_server):
    with triton.InferenceServerClient(own_server.target) as connected:
        yield connected


@pytest.fixture
def jargon(own_client):
    """A client of the server, on which the model is loaded."""
    own_client.load_model("jargon")
    return own_client


def states(client):
    return {model.name: model.state for model in client.get_model_repository_index().models}


def infer(client, name, rows):
    tensor = triton.InferInput("hidden_states", rows.shape, "FP32")
    tensor.set_data_from_numpy(rows)
    return client.infer(name, [tensor]).as_numpy("output")


def code(caught):
    return caught.value.status().removeprefix("StatusCode.")


def test_a_server_without_a_loaded_model_is_ready(own_client):
    assert own_client.is_server_ready()
    assert states(own_client) == {"damaged": "UNAVAILABLE", "jargon": "UNAVAILABLE", "spare": "UNAVAILABLE"}
    assert not own_client.is_model_ready("jargon.0")
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(
        own_client.get_server_metadata().extensions)


def test_load_and_unload(own_client, golden):
    own_client.load_model("jargon")
    assert {name: states(own_client)[name] for name in ALL_LAYERS} == dict.fromkeys(ALL_LAYERS, "READY")
    for layer in LAYER_NAMES:
        assert own_client.is_model_ready(f"jargon.{layer}")
        rows, expected = golden.layer(layer)
        np.testing.assert_allclose(infer(own_client, f"jargon.{layer}", rows), expected, rtol=1e-4, atol=1e-5)
    assert own_client.get_model_metadata("jargon.3").inputs[0].shape == [-1, 128]
    own_client.unload_model("jargon", unload_dependents=True)
    assert states(own_client)["jargon.0"] == "UNAVAILABLE"
    assert not own_client.is_model_ready("jargon.0")
    with pytest.raises(InferenceServerException) as caught:
        infer(own_client, "jargon.0", golden.layer(0)[0])
    assert (code(caught), caught.value.message()) == ("UNAVAILABLE", "model 'jargon.0' is unloaded")
    own_client.unload_model("jargon")  # it is unloaded already


def test_single_layers(jargon, golden):
    rows = golden.layer(1)[0]
    jargon.unload_model("jargon.1")
    assert [states(jargon)[name] for name in ALL_LAYERS] == ["READY", "UNAVAILABLE", "READY", "READY"]
    assert not jargon.is_model_ready("jargon.1") and jargon.is_model_ready("jargon.2")
    with pytest.raises(InferenceServerException) as caught:
        infer(jargon, "jargon.1", rows)
    assert code(caught) == "UNAVAILABLE"
    assert infer(jargon, "jargon.2", rows).shape == rows.shape
    jargon.load_model("jargon.1")
    assert infer(jargon, "jargon.1", rows).shape == rows.shape
    for layer in LAYER_NAMES:
        jargon.unload_model(f"jargon.{layer}")
    jargon.load_model("jargon.2")
    assert [states(jargon)[name] for name in ALL_LAYERS] == ["UNAVAILABLE", "UNAVAILABLE", "READY", "UNAVAILABLE"]


def test_statistics_go_on_over_a_reload(jargon, golden):
    def count():
        return jargon.get_inference_statistics("jargon.0").model_stats[0].inference_count
    before = count()
    infer(jargon, "jargon.0", golden.layer(0)[0])
    jargon.load_model("jargon")
    infer(jargon, "jargon.0", golden.layer(0)[0])
    assert count() == before + 2


def test_the_index_can_be_of_the_ready_ones(own_server, jargon):
    with grpc.insecure_channel(own_server.target) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        ready = [model.name for model in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models]
        assert ready == ALL_LAYERS
        with pytest.raises(grpc.RpcError) as caught:
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="r", model_name="jargon"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name, expected", [
    ("absent", "NOT_FOUND"), ("jargon.9", "NOT_FOUND"), ("", "INVALID_ARGUMENT"), ("../jargon", "NOT_FOUND"),
    ("/etc", "NOT_FOUND"), ("jargon/../jargon", "NOT_FOUND"), (".", "NOT_FOUND")])
def test_names_that_are_not_known(jargon, name, expected):
    for call in (jargon.load_model, jargon.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call(name)
        assert code(caught) == expected


@pytest.mark.parametrize("options, parameter", [
    ({"config": "{}"}, "config"), ({"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "")])
def test_configurations_and_files_of_the_callers_are_refused(jargon, options, parameter):
    with pytest.raises(InferenceServerException) as caught:
        jargon.load_model("jargon", **options)
    assert code(caught) == "INVALID_ARGUMENT"
    assert "parameters" in caught.value.message() and parameter in caught.value.message()
    assert jargon.is_model_ready("jargon.0")


def test_a_damaged_checkpoint_is_refused_with_the_reason(own_client):
    with pytest.raises(InferenceServerException) as caught:
        own_client.load_model("damaged")
    assert ".safetensors" in caught.value.message()
    damaged = [m for m in own_client.get_model_repository_index().models if m.name == "damaged"]
    assert (damaged[0].state, ".safetensors" in damaged[0].reason) == ("UNAVAILABLE", True)
    assert own_client.is_server_ready()


def test_a_folder_that_comes_later(own_client, repository):
    shutil.copytree(repository / "spare", repository / "later")
    own_client.load_model("later.0")
    assert own_client.is_model_ready("later.0") and not own_client.is_model_ready("later.1")
    own_client.unload_model("later")


def test_health_follows(own_server, jargon):
    def request(name):
        return health_pb2.HealthCheckRequest(service=name)
    with grpc.insecure_channel(own_server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = iter(health.Watch(request("jargon.0"), timeout=60))
        while next(watched).status != SERVING:
            pass
        jargon.unload_model("jargon.0")
        assert next(watched).status == NOT_SERVING
        assert health.Check(request("")).status == SERVING
        assert health.Check(request("jargon.1")).status == SERVING
        jargon.load_model("jargon.0")
        assert next(watched).status == SERVING


class Callers:
    """Threads that call a layer until they are stopped, and record errors."""

    def __init__(self, server, name, rows, expected, may_be_unavailable, count=2):
        self.answered, self.refused, self.errors = 0, 0, []
        self._server, self._name, self._rows, self._expected = server, name, rows, expected
        self._may_be_unavailable = may_be_unavailable
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        with triton.InferenceServerClient(self._server.target) as client:
            while not self._stop.is_set():
                try:
                    output = infer(client, self._name, self._rows)
                    np.testing.assert_allclose(output, self._expected, rtol=1e-4, atol=1e-5)
                    counter = "answered"
                except InferenceServerException as error:
                    counter = "refused"
                    if not (self._may_be_unavailable and "UNAVAILABLE" in error.status()):
                        self.errors.append(error)
                except AssertionError as error:
                    self.errors.append(error)
                with self._changed:
                    setattr(self, counter, getattr(self, counter) + 1)
                    self._changed.notify_all()

    def wait_for_more(self, counter, count=5):
        with self._changed:
            until = getattr(self, counter) + count
            assert self._changed.wait_for(lambda: getattr(self, counter) >= until or self.errors, timeout=60)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors[0]


def test_reload_under_load(own_server, jargon, golden):
    callers = Callers(own_server, "jargon.0", *golden.layer(0), may_be_unavailable=False)
    for _ in range(5):
        callers.wait_for_more("answered")
        jargon.load_model("jargon")
    callers.wait_for_more("answered")
    callers.stop()


def test_load_and_unload_under_load(own_server, jargon, golden):
    jargon.load_model("spare")
    callers = Callers(own_server, "jargon.0", *golden.layer(0), may_be_unavailable=True)
    others = Callers(own_server, "spare.0", *golden.layer(0), may_be_unavailable=False)
    for _ in range(3):
        callers.wait_for_more("answered")
        jargon.unload_model("jargon")
        callers.wait_for_more("refused")
        others.wait_for_more("answered")
        jargon.load_model("jargon")
    callers.wait_for_more("answered")
    callers.stop()
    others.stop()


def test_many_changes_at_once_come_one_after_the_other(own_server, jargon):
    """Each succeeds, unless it is a load that a later unload has called off."""
    errors = []

    def change(index):
        with triton.InferenceServerClient(own_server.target) as client:
            try:
                (client.load_model if index % 2 == 0 else client.unload_model)("spare")
            except InferenceServerException as error:
                errors.append(error)
    threads = [threading.Thread(target=change, args=[index]) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("called off" in error.message() for error in errors)
    jargon.load_model("spare")
    assert jargon.is_model_ready("spare.3")


def test_a_stop_ends_what_waits(repository):
    server = Server(f"--model=jargon={pathlib.Path(repository) / 'jargon'}", "--local_workers=1")
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        changes = [stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="jargon"), timeout=60)
                   for _ in range(30)]
        server.terminate()
        for change in changes:
            error = change.exception()
            assert error is None or error.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0, server.log()
