"""An unmodified tritonclient against a front: every call of the KServe API, its types, its options and its errors."""

import asyncio
import contextlib
import queue
import threading

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2 as model_config
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from conftest import LAYER_NAMES

MODEL = "jargon-moe.3"
DIM, EXPERTS, TOP_K = 128, 16, 4


def hidden_states(rows):
    tensor = triton.InferInput("hidden_states", rows.shape, np_to_triton_dtype(rows.dtype))
    tensor.set_data_from_numpy(rows)
    return tensor


def wanted(*names):
    return [triton.InferRequestedOutput(name) for name in names]


def random_rows(num_rows, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, DIM)).astype(dtype)


def raw_request(rows, **fields):
    """A hand-made request, for content that tritonclient would not send."""
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[rows.tobytes()], **fields)
    request.inputs.add(name="hidden_states", datatype=np_to_triton_dtype(rows.dtype), shape=rows.shape)
    return request


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield rpc.GRPCInferenceServiceStub(channel)


# ---- Health and metadata


def test_server_and_models_are_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    for layer in LAYER_NAMES:
        assert client.is_model_ready(f"jargon-moe.{layer}")
        assert client.is_model_ready(f"jargon-moe.{layer}", "1")
    assert not client.is_model_ready("jargon-moe.4")
    assert not client.is_model_ready(MODEL, "2")


def test_server_metadata_names_what_is_there(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "switchyard"
    assert metadata.version
    assert {"model_configuration", "parameters", "statistics", "trace", "logging", "model_repository",
            "model_repository(unload_dependents)"} <= set(metadata.extensions)


def test_model_metadata(client):
    metadata = client.get_model_metadata(MODEL)
    assert (metadata.name, list(metadata.versions)) == (MODEL, ["1"])
    tensors = [(t.name, t.datatype, list(t.shape)) for t in [*metadata.inputs, *metadata.outputs]]
    assert tensors == [("hidden_states", "FP32", [-1, DIM]), ("output", "FP32", [-1, DIM]),
                       ("expert_ids", "INT32", [-1, TOP_K]), ("expert_weights", "FP32", [-1, TOP_K])]


def test_model_config_agrees_with_the_metadata(client):
    config = client.get_model_config(MODEL).config
    assert (config.name, config.max_batch_size) == (MODEL, 0)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("hidden_states", 11, [-1, DIM])]
    assert [(t.name, list(t.dims)) for t in config.output] == [
        ("output", [-1, DIM]), ("expert_ids", [-1, TOP_K]), ("expert_weights", [-1, TOP_K])]
    assert config.HasField("model_transaction_policy") and not config.model_transaction_policy.decoupled
    assert config.parameters["num_experts"].string_value == str(EXPERTS)


def test_model_config_tells_how_the_layer_is_served(client):
    config = client.get_model_config(MODEL).config
    assert [(group.name, group.count, group.kind) for group in config.instance_group] == [
        (f"{MODEL}_rank{rank}", 1, model_config.ModelInstanceGroup.KIND_CPU) for rank in range(2)]
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.dynamic_batching.default_queue_policy.allow_timeout_override
    assert config.optimization.eager_batching and not config.optimization.input_pinned_memory.enable
    assert not config.response_cache.enable
    assert config.parameters["max_batch_rows"].string_value == "4096"


def test_repository_index_lists_every_layer(client):
    index = client.get_model_repository_index()
    assert [(m.name, m.version, m.state) for m in index.models] == [
        (f"jargon-moe.{layer}", "1", "READY") for layer in LAYER_NAMES]


# ---- Inference

# The front computes in fp32 here, so an answer of another type is the fp32 answer, rounded: off by at most half a unit
# in the last place. The bounds are a whole unit, or what the order of sums may change in fp32.
ROUNDING = {np.float64: 1e-5, np.float32: 1e-5, np.float16: 2.0**-10, ml_dtypes.bfloat16: 2.0**-7}


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_recorded_layers(client, golden, layer):
    rows, expected = golden.layer(layer)
    result = client.infer(f"jargon-moe.{layer}", [hidden_states(rows)])
    np.testing.assert_allclose(result.as_numpy("output"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: np.dtype(dtype).name)
def test_answers_have_the_type_of_the_request(client, golden, dtype):
    rows = golden.layer(3)[0].astype(dtype)
    result = client.infer(MODEL, [hidden_states(rows)], outputs=wanted("output"))
    output = result.as_numpy("output")
    assert output.shape == rows.shape
    assert result.get_output("output").datatype == np_to_triton_dtype(np.dtype(dtype))
    same = client.infer(MODEL, [hidden_states(rows.astype(np.float32))]).as_numpy("output")
    np.testing.assert_allclose(output.astype(np.float64), same, rtol=ROUNDING[dtype], atol=1e-6)


def test_bf16_cut_from_float32_as_older_clients_send_it(stub, client):
    rows = random_rows(5)
    cut = (rows.view(np.uint32) >> 16).astype(np.uint16)
    request = raw_request(rows)
    request.inputs[0].datatype = "BF16"
    request.raw_input_contents[0] = cut.tobytes()
    answer = stub.ModelInfer(request)
    same = client.infer(MODEL, [hidden_states(cut.view(ml_dtypes.bfloat16))])
    assert answer.outputs[0].datatype == "BF16"
    assert answer.raw_output_contents[0] == same.as_numpy("output").tobytes()


@pytest.mark.parametrize("dtype, field", [(np.float32, "fp32_contents"), (np.float64, "fp64_contents")])
def test_typed_contents_are_as_good_as_raw_ones(stub, dtype, field):
    rows = random_rows(7, dtype)
    raw = raw_request(rows)
    typed = raw_request(rows)
    typed.ClearField("raw_input_contents")
    getattr(typed.inputs[0].contents, field).extend(rows.flatten().tolist())
    assert stub.ModelInfer(typed).raw_output_contents == stub.ModelInfer(raw).raw_output_contents


def test_the_id_comes_back(client):
    assert client.infer(MODEL, [hidden_states(random_rows(1))], request_id="number 7").get_response().id == "number 7"


def test_only_rows_come_when_nothing_is_asked_for(client):
    response = client.infer(MODEL, [hidden_states(random_rows(3))]).get_response()
    assert [output.name for output in response.outputs] == ["output"]
    assert (response.model_name, response.model_version) == (MODEL, "1")


def test_routing_comes_when_asked_for_in_the_order_asked(client):
    rows = random_rows(9)
    result = client.infer(MODEL, [hidden_states(rows)], outputs=wanted("expert_weights", "output", "expert_ids"))
    assert [o.name for o in result.get_response().outputs] == ["expert_weights", "output", "expert_ids"]
    ids, weights = result.as_numpy("expert_ids"), result.as_numpy("expert_weights")
    assert ids.dtype == np.int32 and ids.shape == weights.shape == (9, TOP_K)
    assert all(len(set(row)) == TOP_K and 0 <= min(row) and max(row) < EXPERTS for row in ids.tolist())
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)  # this gate's weights are normalised
    alone = client.infer(MODEL, [hidden_states(rows)], outputs=wanted("expert_ids"))
    assert alone.as_numpy("output") is None
    np.testing.assert_array_equal(alone.as_numpy("expert_ids"), ids)


def test_native_options_are_parameters(client):
    rows = random_rows(6)
    result = client.infer(MODEL, [hidden_states(rows)], outputs=wanted("expert_ids", "expert_weights"),
                          parameters={"top_k": 2, "gate_index": 0, "capacity_factor": 1.0, "balance_loss": True})
    assert result.as_numpy("expert_ids").shape == (6, 2)
    assert result.get_response().parameters["balance_loss"].double_param > 0
    # Factor 1 leaves every expert 2 · int(1 · ceil(6 / 16)) = 2 of the 12 choices; a lost choice is -1 with weight 0.
    ids, weights = result.as_numpy("expert_ids"), result.as_numpy("expert_weights")
    assert np.bincount(ids[ids >= 0], minlength=EXPERTS).max() <= 2
    assert np.all((ids >= 0) == (weights > 0))


def test_unknown_parameters_are_accepted(client):
    client.infer(MODEL, [hidden_states(random_rows(1))], priority=1, timeout=60_000_000,
                 parameters={"colour": "green", "number": 3, "yes": True, "ratio": 0.5})


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client, golden, algorithm):
    rows, expected = golden.layer(3)
    result = client.infer(MODEL, [hidden_states(rows)], compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("output"), expected, rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_hurt_their_own_rows_alone(client):
    rows = random_rows(4)
    clean = client.infer(MODEL, [hidden_states(rows)]).as_numpy("output")
    rows[1], rows[2, 5] = np.nan, np.inf
    output = client.infer(MODEL, [hidden_states(rows)]).as_numpy("output")
    for row in (0, 3):
        np.testing.assert_allclose(output[row], clean[row], rtol=1e-4, atol=1e-5)


def test_many_calls_at_once(client, golden):
    rows, expected = golden.layer(3)
    answers = queue.Queue()
    for i in range(64):
        client.async_infer(MODEL, [hidden_states(rows[i:i + 1 + i % 5])], request_id=str(i),
                           callback=lambda result, error: answers.put((result, error)))
    for _ in range(64):
        result, error = answers.get(timeout=60)
        assert error is None
        i = int(result.get_response().id)
        np.testing.assert_allclose(result.as_numpy("output"), expected[i:i + 1 + i % 5], rtol=1e-4, atol=1e-5)


def test_asyncio(server, golden):
    rows, expected = golden.layer(3)

    async def call():
        async with triton_aio.InferenceServerClient(server.target) as client:
            assert await client.is_model_ready(MODEL)
            results = await asyncio.gather(*(client.infer(MODEL, [hidden_states(rows)]) for _ in range(8)))

            async def requests():
                for i in range(20):
                    yield {"model_name": MODEL, "inputs": [hidden_states(rows[i:i + 1])], "request_id": str(i)}

            streamed = {}
            async for result, error in client.stream_infer(requests()):
                assert error is None
                streamed[int(result.get_response().id)] = result.as_numpy("output")
            return results, streamed

    results, streamed = asyncio.run(call())
    for result in results:
        np.testing.assert_allclose(result.as_numpy("output"), expected, rtol=1e-4, atol=1e-5)
    assert sorted(streamed) == list(range(20))
    for i, output in streamed.items():
        np.testing.assert_allclose(output, expected[i:i + 1], rtol=1e-4, atol=1e-5)


def test_cancelled_and_expired_calls(client):
    rows = hidden_states(random_rows(100_000))
    answers = queue.Queue()
    call = client.async_infer(MODEL, [rows], callback=lambda result, error: answers.put(error))
    call.cancel()
    assert "CANCELLED" in answers.get(timeout=60).status()
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, [rows], client_timeout=0.001)
    assert "DEADLINE_EXCEEDED" in caught.value.status()
    assert client.infer(MODEL, [hidden_states(random_rows(1))]).as_numpy("output").shape == (1, DIM)


@contextlib.contextmanager
def busy_queue(client, **parameters):
    """Keeps the server busy with requests for a while. Gives a queue of their errors, or None, as they are answered."""
    answers = queue.Queue()
    rows = hidden_states(random_rows(50_000))
    for _ in range(6):
        client.async_infer(MODEL, [rows], callback=lambda result, error: answers.put(error), **parameters)
    yield answers
    for _ in range(6):
        assert answers.get(timeout=60) is None


def test_timeout_is_of_the_queue(client):
    rows = hidden_states(random_rows(1))
    for timeout in (0, 60_000_000, 2**62):
        client.infer(MODEL, [rows], timeout=timeout)
    with busy_queue(client) as answers, pytest.raises(InferenceServerException) as caught:
        while answers.qsize() < 6:  # some of these requests find the queue busy
            client.infer(MODEL, [rows], timeout=1)
    assert "DEADLINE_EXCEEDED" in caught.value.status()
    assert "queue timeout" in caught.value.message()


def test_priority_goes_before_others(client):
    rows = hidden_states(random_rows(1))
    for priority in (0, 1, 2, 3, 100):
        client.infer(MODEL, [rows], priority=priority)
    with busy_queue(client, priority=3) as answers:
        client.infer(MODEL, [rows], priority=1)
        assert answers.qsize() < 6


# ---- Errors


def with_input(**fields):
    def change(request):
        for name, value in fields.items():
            if name == "shape":
                del request.inputs[0].shape[:]
                request.inputs[0].shape.extend(value)
            else:
                setattr(request.inputs[0], name, value)
    return change


def set_parameter(name, **value):
    return lambda request: request.parameters[name].CopyFrom(pb.InferParameter(**value))


INVALID, MISSING, UNIMPLEMENTED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
                                   grpc.StatusCode.UNIMPLEMENTED)
ERRORS = {
    "unknown model": (lambda r: setattr(r, "model_name", "colour"), MISSING, "unknown model: 'colour'"),
    "unknown layer": (lambda r: setattr(r, "model_name", "jargon-moe.9"), MISSING, "jargon-moe.0, jargon-moe.1"),
    "unknown version": (lambda r: setattr(r, "model_version", "2"), MISSING, "version 2"),
    "no version": (lambda r: setattr(r, "model_version", "new"), INVALID, "version: expected a number"),
    "very long name": (lambda r: setattr(r, "model_name", "x" * 50_000), MISSING, "unknown model: 'xxx"),
    "no input": (lambda r: r.ClearField("inputs"), INVALID, "expected 1 input, 'hidden_states', found none"),
    "two inputs": (lambda r: r.inputs.add(name="more"), INVALID, "found 'hidden_states', 'more'"),
    "other input": (with_input(name="pixels"), INVALID, "found 'pixels'"),
    "datatype": (with_input(datatype="INT8"), INVALID, "expected FP64, FP32, FP16 or BF16, found 'INT8'"),
    "one dimension": (with_input(shape=[DIM]), INVALID, "expected [rows, 128] with at least 1 row, found [128]"),
    "width": (with_input(shape=[2, 64]), INVALID, "found [2, 64]"),
    "no rows": (with_input(shape=[0, DIM]), INVALID, "found [0, 128]"),
    "negative rows": (with_input(shape=[-1, DIM]), INVALID, "found [-1, 128]"),
    "vast shape": (with_input(shape=[2**62, DIM]), INVALID, "hidden_states"),
    "too many bytes": (with_input(shape=[1, DIM]), INVALID, "expected 1 × 512 bytes for shape [1, 128] of FP32, found 1024"),
    "no contents": (lambda r: r.ClearField("raw_input_contents"), INVALID, "found 0"),
    "two raw contents": (lambda r: r.raw_input_contents.append(b""), INVALID, "expected 1 entry"),
    "raw and typed": (lambda r: r.inputs[0].contents.fp32_contents.append(1), INVALID, "beside raw_input_contents"),
    "unknown output": (lambda r: r.outputs.add(name="logits"), INVALID, "expected output, expert_ids or expert_weights"),
    "classes": (lambda r: r.outputs.add(name="output").parameters["classification"].CopyFrom(
        pb.InferParameter(int64_param=3)), INVALID, "classification"),
    "shared memory in": (lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(
        pb.InferParameter(string_param="secret")), UNIMPLEMENTED, "shared memory"),
    "shared memory out": (lambda r: r.outputs.add(name="output").parameters["shared_memory_region"].CopyFrom(
        pb.InferParameter(string_param="secret")), UNIMPLEMENTED, "shared memory"),
    "top_k": (set_parameter("top_k", int64_param=17), INVALID, "top_k: expected 1 to 16"),
    "top_k's kind": (set_parameter("top_k", string_param="2"), INVALID, "top_k: expected an integer, found a string"),
    "gate_index": (set_parameter("gate_index", int64_param=1), INVALID, "gate_index"),
    "capacity_factor": (set_parameter("capacity_factor", double_param=float("nan")), INVALID, "capacity_factor"),
    "balance_loss": (set_parameter("balance_loss", int64_param=1), INVALID, "balance_loss: expected a bool"),
    "timeout": (set_parameter("timeout", int64_param=-1), INVALID, "timeout: expected 0 or more, found -1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_field(stub, name):
    change, code, text = ERRORS[name]
    request = raw_request(random_rows(2))
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == code
    assert text in caught.value.details()
    assert len(caught.value.details()) < 2000
    assert "secret" not in caught.value.details()


@pytest.mark.parametrize("dtype, field, text", [
    ("FP32", "fp64_contents", "expected fp32_contents"), ("FP64", "int_contents", "expected fp64_contents"),
    ("BF16", "fp32_contents", "BF16 has no typed contents"), ("FP16", "fp32_contents", "FP16 has no typed contents")])
def test_wrong_typed_contents(stub, dtype, field, text):
    request = raw_request(random_rows(1))
    request.ClearField("raw_input_contents")
    request.inputs[0].datatype = dtype
    getattr(request.inputs[0].contents, field).extend([1] * DIM)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == INVALID
    assert text in caught.value.details()


@pytest.mark.parametrize("call", [
    lambda c: c.get_model_metadata("colour"), lambda c: c.get_model_config("colour"),
    lambda c: c.get_inference_statistics("colour")])
def test_unknown_models_are_not_found(client, call):
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert "NOT_FOUND" in caught.value.status()
    assert "jargon-moe.3" in caught.value.message()


@pytest.mark.parametrize("call", [
    lambda c: c.get_system_shared_memory_status(),
    lambda c: c.register_system_shared_memory("x", "/x", 1), lambda c: c.unregister_system_shared_memory(),
    lambda c: c.get_cuda_shared_memory_status(), lambda c: c.register_cuda_shared_memory("x", b"eA==", 0, 1),
    lambda c: c.unregister_cuda_shared_memory()],
    ids=["system status", "system register", "system unregister", "cuda status", "cuda register",
         "cuda unregister"])
def test_what_is_not_offered_says_so(client, call):
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert "UNIMPLEMENTED" in caught.value.status()
    assert "not offered by this server" in caught.value.message()


# ---- Streams


class Stream:
    """tritonclient's stream, with its answers in a queue."""

    def __init__(self, target):
        self.client = triton.InferenceServerClient(target)
        self._answers = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self._answers.put((result, error)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop_stream()
        self.client.close()

    def send(self, model, rows, **options):
        self.client.async_stream_infer(model, [hidden_states(rows)], **options)

    def receive(self):
        return self._answers.get(timeout=60)


def test_streams_answer_every_request_by_its_id(server, golden):
    rows, expected = golden.layer(3)
    with Stream(server.target) as stream:
        for i in range(300):  # more than the server holds at a time
            stream.send(MODEL, rows[i:i + 1 + i % 7], request_id=str(i))
        seen = set()
        for _ in range(300):
            result, error = stream.receive()
            assert error is None
            i = int(result.get_response().id)
            np.testing.assert_allclose(result.as_numpy("output"), expected[i:i + 1 + i % 7], rtol=1e-4, atol=1e-5)
            seen.add(i)
        assert len(seen) == 300


def test_an_error_leaves_the_stream_open(server):
    with Stream(server.target) as stream:
        stream.send("colour", random_rows(1), request_id="bad")
        result, error = stream.receive()
        assert result is None
        assert error.message().startswith("NOT_FOUND: ")
        stream.send(MODEL, random_rows(2), request_id="good", outputs=wanted("output", "expert_ids"))
        result, error = stream.receive()
        assert error is None
        assert result.get_response().id == "good"
        assert result.as_numpy("expert_ids").shape == (2, TOP_K)


def test_errors_on_streams_carry_the_id(stub):
    bad = raw_request(random_rows(1), id="seven")
    bad.inputs[0].name = "pixels"
    answer = next(iter(stub.ModelStreamInfer(iter([bad]))))
    assert answer.error_message.startswith("INVALID_ARGUMENT: ")
    assert answer.infer_response.id == "seven"


def test_the_last_answer_says_so_when_asked(server):
    with Stream(server.target) as stream:
        stream.send(MODEL, random_rows(1), enable_empty_final_response=True)
        result, error = stream.receive()
        assert error is None
        assert result.get_response().parameters["triton_final_response"].bool_param


def test_answers_come_as_they_are_ready(server):
    with Stream(server.target) as stream:
        stream.send(MODEL, random_rows(100_000), request_id="large")
        stream.send("colour", random_rows(1), request_id="refused at once")
        assert stream.receive()[1] is not None
        assert stream.receive()[0].get_response().id == "large"


def test_a_cancelled_stream_harms_nobody(stub, client):
    def requests(stop):
        for i in range(50):
            yield raw_request(random_rows(2000), id=str(i))
        stop.wait(60)

    stop = threading.Event()
    call = stub.ModelStreamInfer(requests(stop))
    next(iter(call))
    call.cancel()
    stop.set()
    assert client.infer(MODEL, [hidden_states(random_rows(1))]).as_numpy("output").shape == (1, DIM)


# ---- Statistics and settings


def test_statistics_count_what_happened(client, stub):
    def now():
        return client.get_inference_statistics("jargon-moe.1").model_stats[0]

    before = now()
    for _ in range(5):
        client.infer("jargon-moe.1", [hidden_states(random_rows(100))])
    bad = raw_request(random_rows(1))
    bad.model_name, bad.inputs[0].name = "jargon-moe.1", "pixels"
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(bad)
    after = now()
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    old, new = before.inference_stats, after.inference_stats
    assert [getattr(new, s).count - getattr(old, s).count for s in stages] == [5] * 5
    assert new.fail.count - old.fail.count == 1
    spent = {s: getattr(new, s).ns - getattr(old, s).ns for s in stages}
    assert spent["compute_infer"] > 0
    assert sum(spent.values()) == 2 * spent["success"], "the stages add up"
    assert (after.name, after.version) == ("jargon-moe.1", "1")
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 5
    assert after.last_inference > before.last_inference
    assert [b.compute_infer.count for b in after.batch_stats if b.batch_size == 128] == [5]
    assert {stats.name for stats in client.get_inference_statistics().model_stats} == {
        f"jargon-moe.{layer}" for layer in LAYER_NAMES}


def test_log_settings_act(client, server):
    assert client.get_log_settings(as_json=True)["settings"]["log_verbose_level"]["uint32_param"] == 0
    client.infer(MODEL, [hidden_states(random_rows(1))], headers={"x-request-id": "before"})
    changed = client.update_log_settings({"log_verbose_level": 1})
    assert changed.settings["log_verbose_level"].uint32_param == 1
    client.infer(MODEL, [hidden_states(random_rows(1))], headers={"x-request-id": "while"})
    client.update_log_settings({"log_verbose_level": 0})
    client.infer(MODEL, [hidden_states(random_rows(1))], headers={"x-request-id": "after"})
    log = server.log()
    assert "request answered request_id=while" in log
    assert "request_id=before" not in log and "request_id=after" not in log
    with pytest.raises(InferenceServerException) as caught:
        client.update_log_settings({"log_file": "/tmp/x"})
    assert "INVALID_ARGUMENT" in caught.value.status()
