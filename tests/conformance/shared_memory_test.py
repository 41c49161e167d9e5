"""Tensors in system shared memory: an unmodified tritonclient on the same host, and callers that lie about memory."""

import itertools
import os
import queue
import secrets
import threading

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from conftest import MODEL as CHECKPOINT
from conftest import Server

MODEL = "jargon-moe.3"
DIM, TOP_K = 128, 4
INVALID, MISSING, PRECONDITION = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
                                  grpc.StatusCode.FAILED_PRECONDITION)


@pytest.fixture(scope="module")
def sharing():
    """A front that lets clients share memory, on an address of this host."""
    running = Server(f"--model=jargon-moe={CHECKPOINT}", "--local_workers=2", "--compute_dtype=fp32",
                     "--allow_client_shm")
    yield running
    running.terminate()
    assert running.wait() == 0, running.log()


@pytest.fixture(scope="module")
def connected(sharing):
    with triton.InferenceServerClient(sharing.target) as client:
        yield client


@pytest.fixture
def client(connected):
    """A client, with no regions before and after the test."""
    yield connected
    connected.unregister_system_shared_memory()
    assert not connected.get_system_shared_memory_status().regions


@pytest.fixture(scope="module")
def stub(sharing):
    with grpc.insecure_channel(sharing.target) as channel:
        yield rpc.GRPCInferenceServiceStub(channel)


class Region:
    """A shared memory object. The server knows it by a name once it is registered."""

    numbers = itertools.count()

    def __init__(self, byte_size, name=None):
        self.name = name or f"region {next(self.numbers)}"
        self.key = f"/switchyard_{secrets.token_hex(4)}_{next(self.numbers)}"
        self.byte_size = byte_size
        self.handle = shm.create_shared_memory_region(self.name, self.key, byte_size, create_only=True)

    def register(self, client, offset=0):
        client.register_system_shared_memory(self.name, self.key, self.byte_size - offset, offset)
        return self

    def put(self, array, offset=0):
        shm.set_shared_memory_region(self.handle, [array], offset)

    def get(self, dtype, shape, offset=0):
        return shm.get_contents_as_numpy(self.handle, dtype, shape, offset).copy()

    def truncate(self, byte_size):
        os.truncate("/dev/shm" + self.key, byte_size)

    def size(self):
        return os.stat("/dev/shm" + self.key).st_size


@pytest.fixture
def new_region():
    """Makes regions whose objects are removed when the test has ended."""
    regions = []

    def make(*arguments, **options):
        regions.append(Region(*arguments, **options))
        return regions[-1]

    yield make
    for region in regions:
        shm.destroy_shared_memory_region(region.handle)


def random_rows(num_rows, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, DIM)).astype(dtype)


def input_in(region, rows, offset=0):
    tensor = triton.InferInput("hidden_states", rows.shape, np_to_triton_dtype(rows.dtype))
    return tensor.set_shared_memory(region.name, rows.nbytes, offset)


def input_of(rows):
    tensor = triton.InferInput("hidden_states", rows.shape, np_to_triton_dtype(rows.dtype))
    return tensor.set_data_from_numpy(rows)


def output_in(region, num_bytes, offset=0, name="output"):
    output = triton.InferRequestedOutput(name)
    output.set_shared_memory(region.name, num_bytes, offset)
    return output


def refusal(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


# ---- Registering


def test_the_server_says_that_it_shares_memory(client, sharing):
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(client.get_server_metadata().extensions)


def test_register_status_and_unregister(client, new_region):
    one, two = new_region(4096).register(client), new_region(8192).register(client, offset=1000)
    regions = client.get_system_shared_memory_status().regions
    assert {(r.name, r.key, r.offset, r.byte_size) for r in regions.values()} == {
        (one.name, one.key, 0, 4096), (two.name, two.key, 1000, 7192)}
    assert set(regions) == {one.name, two.name}
    assert list(client.get_system_shared_memory_status(two.name).regions) == [two.name]
    client.unregister_system_shared_memory(one.name)
    assert list(client.get_system_shared_memory_status().regions) == [two.name]
    one.register(client)
    client.unregister_system_shared_memory()
    assert not client.get_system_shared_memory_status().regions
    client.unregister_system_shared_memory("never there")
    assert refusal(lambda: client.get_system_shared_memory_status(one.name))[0] == "NOT_FOUND"


def test_a_name_is_taken_once(client, new_region):
    region = new_region(4096).register(client)
    code, message = refusal(lambda: region.register(client))
    assert code == "ALREADY_EXISTS"
    assert message == f"shared memory region '{region.name}' already in manager"


@pytest.mark.parametrize("offset, byte_size", [
    (0, 4097), (1, 4096), (4096, 1), (2**64 - 1, 1), (2**64 - 4095, 4096), (2**64 - 100, 200), (0, 2**64 - 1),
    (2**63, 2**63), (2**63 - 1, 1), (0, 0)])
def test_registrations_beyond_the_object_are_refused(client, new_region, offset, byte_size):
    region = new_region(4096)
    code, _ = refusal(lambda: client.register_system_shared_memory("x", region.key, byte_size, offset))
    assert code == "INVALID_ARGUMENT"
    assert not client.get_system_shared_memory_status().regions


@pytest.mark.parametrize("key", ["", "/", ".", "/..", "/../shm/x", "/etc/passwd", "//x", "/a/b", "x" * 256, "/a\0b"])
def test_keys_are_no_paths(client, key):
    code, message = refusal(lambda: client.register_system_shared_memory("x", key, 10))
    assert code == "INVALID_ARGUMENT"
    assert "expected the name of a POSIX shared memory object" in message


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\0b"])
def test_names_are_bounded(client, new_region, name):
    region = new_region(100)
    code, message = refusal(lambda: client.register_system_shared_memory(name, region.key, 100))
    assert code == "INVALID_ARGUMENT"
    assert "name: expected 1 to 255 bytes" in message


def test_nothing_is_said_about_objects_that_may_not_be_registered(client, new_region):
    exists = new_region(100)
    link = f"switchyard_link_{secrets.token_hex(4)}"
    os.symlink("/etc/passwd", f"/dev/shm/{link}")
    try:
        answers = {refusal(lambda: client.register_system_shared_memory("x", key, 200))
                   for key in ("/none", exists.key, link, "/sem.secret", "/nccl-secret", "/cuda.shm.secret")}
    finally:
        os.unlink(f"/dev/shm/{link}")
    assert len(answers) == 1, answers
    assert "secret" not in str(answers)


def test_regions_are_bounded(client, new_region):
    region = new_region(10)
    for i in range(256):
        client.register_system_shared_memory(str(i), region.key, 10)
    code, message = refusal(lambda: client.register_system_shared_memory("one more", region.key, 10))
    assert code == "RESOURCE_EXHAUSTED"
    assert "256 shared memory regions" in message
    client.unregister_system_shared_memory()
    client.register_system_shared_memory("one more", region.key, 10)


# ---- Inference


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16],
                         ids=lambda dtype: np.dtype(dtype).name)
def test_input_and_output_in_shared_memory(client, new_region, golden, dtype):
    rows = golden.layer(3)[0].astype(dtype)
    expected = client.infer(MODEL, [input_of(rows)]).as_numpy("output")
    given, taken = new_region(rows.nbytes).register(client), new_region(rows.nbytes).register(client)
    given.put(rows)
    response = client.infer(MODEL, [input_in(given, rows)], outputs=[output_in(taken, rows.nbytes)]).get_response()
    np.testing.assert_array_equal(taken.get(dtype, rows.shape), expected)
    assert list(response.raw_output_contents) == [b""]
    [output] = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("output", np_to_triton_dtype(np.dtype(dtype)),
                                                                  list(rows.shape))
    assert {name: value.WhichOneof("parameter_choice") for name, value in output.parameters.items()} == {
        "shared_memory_region": "string_param", "shared_memory_byte_size": "int64_param"}
    assert output.parameters["shared_memory_region"].string_param == taken.name
    assert output.parameters["shared_memory_byte_size"].int64_param == rows.nbytes


def test_everything_in_one_region_at_offsets(client, new_region):
    rows = random_rows(10)
    plain = client.infer(MODEL, [input_of(rows)], outputs=[
        triton.InferRequestedOutput(name) for name in ("output", "expert_ids", "expert_weights")])
    region = new_region(20_000).register(client, offset=100)
    region.put(rows, 100 + 64)
    routing = 10 * TOP_K * 4
    response = client.infer(MODEL, [input_in(region, rows, 64)], outputs=[
        output_in(region, routing, 6000, "expert_ids"), output_in(region, rows.nbytes + 9, 7000),
        output_in(region, routing, 19_000, "expert_weights")]).get_response()
    assert list(response.raw_output_contents) == [b"", b"", b""]
    sizes = {o.name: (o.parameters["shared_memory_offset"].int64_param,
                      o.parameters["shared_memory_byte_size"].int64_param) for o in response.outputs}
    assert sizes == {"expert_ids": (6000, routing), "output": (7000, rows.nbytes), "expert_weights": (19_000, routing)}
    np.testing.assert_array_equal(region.get(np.int32, (10, TOP_K), 6100), plain.as_numpy("expert_ids"))
    np.testing.assert_array_equal(region.get(np.float32, (10, TOP_K), 19_100), plain.as_numpy("expert_weights"))
    np.testing.assert_array_equal(region.get(np.float32, rows.shape, 7100), plain.as_numpy("output"))
    assert not region.get(np.uint8, (19_100 - 7100 - rows.nbytes,), 7100 + rows.nbytes).any(), "and nothing else"


def test_one_output_there_and_one_in_the_answer(client, new_region):
    rows = random_rows(3)
    region = new_region(rows.nbytes).register(client)
    result = client.infer(MODEL, [input_of(rows)], outputs=[output_in(region, rows.nbytes),
                                                           triton.InferRequestedOutput("expert_ids")])
    assert result.as_numpy("expert_ids").shape == (3, TOP_K)
    assert region.get(np.float32, rows.shape).any()


def test_the_same_region_for_input_and_output(client, new_region):
    rows = random_rows(100)
    expected = client.infer(MODEL, [input_of(rows)]).as_numpy("output")
    region = new_region(rows.nbytes).register(client)
    region.put(rows)
    client.infer(MODEL, [input_in(region, rows)], outputs=[output_in(region, rows.nbytes)])
    np.testing.assert_array_equal(region.get(np.float32, rows.shape), expected)


def test_large_tensors_are_copied_beside_the_calls_of_others(client, new_region):
    rows = random_rows(20_000)
    region = new_region(2 * rows.nbytes).register(client)
    region.put(rows)
    answers = queue.Queue()
    client.async_infer(MODEL, [input_in(region, rows)], outputs=[output_in(region, rows.nbytes, rows.nbytes)],
                       callback=lambda result, error: answers.put(error))
    assert client.infer(MODEL, [input_of(rows[:1])]).as_numpy("output").shape == (1, DIM)
    assert answers.get(timeout=60) is None
    first = client.infer(MODEL, [input_of(rows[:50])]).as_numpy("output")
    np.testing.assert_allclose(region.get(np.float32, (50, DIM), rows.nbytes), first, rtol=1e-4, atol=1e-5)


def test_streams_use_shared_memory_and_survive_its_errors(client, sharing, new_region):
    rows = random_rows(40)
    expected = client.infer(MODEL, [input_of(rows)]).as_numpy("output")
    region = new_region(2 * rows.nbytes).register(client)
    region.put(rows)
    answers = queue.Queue()
    with triton.InferenceServerClient(sharing.target) as streaming:
        streaming.start_stream(callback=lambda result, error: answers.put((result, error)))
        for i in range(40):
            at = i * rows[0].nbytes
            streaming.async_stream_infer(MODEL, [input_in(region, rows[i:i + 1], at)], request_id=str(i),
                                         outputs=[output_in(region, rows[0].nbytes, rows.nbytes + at)])
        for _ in range(40):
            result, error = answers.get(timeout=60)
            assert error is None
        np.testing.assert_allclose(region.get(np.float32, rows.shape, rows.nbytes), expected, rtol=1e-4, atol=1e-5)
        region.truncate(100)
        streaming.async_stream_infer(MODEL, [input_in(region, rows)])
        assert "FAILED_PRECONDITION" in answers.get(timeout=60)[1].message()
        streaming.async_stream_infer(MODEL, [input_of(rows)])
        assert answers.get(timeout=60)[1] is None
        streaming.stop_stream()


def test_the_deadline_and_the_timeout_count_here_too(client, new_region):
    rows = random_rows(50_000)
    region = new_region(rows.nbytes).register(client)
    region.put(rows)
    for options in ({"client_timeout": 0.001}, {"timeout": 1}):
        code, _ = refusal(lambda: client.infer(MODEL, [input_in(region, rows)], outputs=[
            output_in(region, rows.nbytes)], **options))
        assert code == "DEADLINE_EXCEEDED"
    assert client.infer(MODEL, [input_of(rows[:1])]).as_numpy("output").shape == (1, DIM)


# ---- Errors


def request_in(region, rows, **parameters):
    """A hand-made request, for content that tritonclient would not send."""
    request = pb.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="hidden_states", datatype="FP32", shape=rows.shape)
    place(tensor, region.name, {"byte_size": rows.nbytes, **parameters})
    return request


def place(tensor, region_name, parameters):
    tensor.parameters["shared_memory_region"].string_param = region_name
    for name, value in parameters.items():
        if value is not None:
            tensor.parameters["shared_memory_" + name].CopyFrom(
                pb.InferParameter(uint64_param=value) if value >= 0 else pb.InferParameter(int64_param=value))


def infer_error(stub, request):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("parameters, text", [
    ({"byte_size": 511}, "expected 1 × 512 bytes for shape [1, 128] of FP32, found 511"),
    ({"byte_size": 513}, "found 513"),
    ({"byte_size": 0}, "shared_memory_byte_size: expected 1 or more, found 0"),
    ({"byte_size": None}, "shared_memory_byte_size: expected 1 or more, found 0"),
    ({"byte_size": -512}, "found -512"),
    ({"byte_size": 1025}, "expected a range within the region's 1024 bytes, found 1025 bytes at offset 0"),
    ({"byte_size": 2**64 - 1}, "expected a range within the region"),
    ({"offset": 513}, "expected a range within the region's 1024 bytes, found 512 bytes at offset 513"),
    ({"offset": 2**64 - 512}, "expected a range within the region"),
    ({"offset": 2**64 - 1}, "expected a range within the region"),
    ({"offset": 2**63 - 1}, "expected a range within the region"),
    ({"offset": -1}, "shared_memory_offset: expected 0 or more, found -1")])
def test_wrong_ranges_of_inputs(client, stub, new_region, parameters, text):
    region = new_region(1024, name="secret").register(client)
    code, details = infer_error(stub, request_in(region, random_rows(1), **parameters))
    assert code == INVALID
    assert text in details and "inputs hidden_states" in details
    assert "secret" not in details


@pytest.mark.parametrize("parameters, text", [
    ({"byte_size": 511}, "shared_memory_byte_size: expected 512 or more, found 511"),
    ({"byte_size": 1025}, "expected a range within the region's 1024 bytes"),
    ({"byte_size": 512, "offset": 2**64 - 512}, "expected a range within the region")])
def test_wrong_ranges_of_outputs_are_refused_before_anything_is_computed(client, stub, new_region, parameters, text):
    region = new_region(1024, name="secret").register(client)
    request = request_in(region, random_rows(1))
    place(request.outputs.add(name="output"), region.name, parameters)
    before = client.get_inference_statistics(MODEL).model_stats[0].inference_count
    code, details = infer_error(stub, request)
    assert code == INVALID
    assert text in details and "outputs output" in details
    assert "secret" not in details
    assert client.get_inference_statistics(MODEL).model_stats[0].inference_count == before


def test_unknown_regions_are_not_named(client, stub, new_region):
    known = new_region(1024, name="known to nobody else").register(client)
    known.name, registered = "secret", known.name
    code, details = infer_error(stub, request_in(known, random_rows(1)))
    assert code == MISSING
    assert "secret" not in details and registered not in details
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[random_rows(1).tobytes()])
    request.inputs.add(name="hidden_states", datatype="FP32", shape=[1, DIM])
    place(request.outputs.add(name="output"), "secret", {"byte_size": 512})
    code, details = infer_error(stub, request)
    assert code == MISSING
    assert "secret" not in details and registered not in details


def test_contents_beside_shared_memory_are_refused(client, stub, new_region):
    region = new_region(1024).register(client)
    request = request_in(region, random_rows(1))
    request.raw_input_contents.append(random_rows(1).tobytes())
    assert infer_error(stub, request)[0] == INVALID


@pytest.mark.parametrize("num_rows", [4, 4000])  # 4: copied at once; 4000: copied by a thread for long copies
def test_a_region_that_is_truncated_harms_only_its_own_requests(client, new_region, num_rows):
    rows = random_rows(num_rows)
    given, taken = new_region(rows.nbytes).register(client), new_region(rows.nbytes).register(client)
    given.put(rows)
    taken.truncate(rows.nbytes // 2)
    code, message = refusal(lambda: client.infer(MODEL, [input_in(given, rows)],
                                                 outputs=[output_in(taken, rows.nbytes)]))
    assert (code, "shorter than when it was registered" in message) == ("FAILED_PRECONDITION", True)
    assert taken.size() == rows.nbytes // 2, "the server does not make it longer"
    given.truncate(0)
    code, message = refusal(lambda: client.infer(MODEL, [input_in(given, rows)]))
    assert (code, "shorter than when it was registered" in message) == ("FAILED_PRECONDITION", True)
    assert client.infer(MODEL, [input_of(rows)]).as_numpy("output").shape == rows.shape


def test_regions_that_come_and_go_under_load(client, sharing, new_region):
    rows = random_rows(50)
    region = new_region(2 * rows.nbytes)
    region.put(rows)
    outcomes, stop = queue.Queue(), threading.Event()

    def call():
        with triton.InferenceServerClient(sharing.target) as own:
            while not stop.is_set():
                try:
                    own.infer(MODEL, [input_in(region, rows)], outputs=[output_in(region, rows.nbytes, rows.nbytes)])
                    outcomes.put("answered")
                except InferenceServerException as error:
                    outcomes.put(error.status())

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    seen = []
    while not {"answered", "StatusCode.NOT_FOUND"} <= set(seen) or len(seen) < 300:
        region.register(client)
        seen.append(outcomes.get(timeout=60))
        client.unregister_system_shared_memory(region.name)
        while not outcomes.empty():
            seen.append(outcomes.get())
    stop.set()
    for caller in callers:
        caller.join()
    assert set(seen) == {"answered", "StatusCode.NOT_FOUND"}


# ---- CUDA without a GPU


def test_cuda_registrations_say_what_is_wrong(client):
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    # With a driver, the error is about the handle; without one, the error is that there is none.
    code, message = refusal(lambda: client.register_cuda_shared_memory("x", b"c2hvcnQ=", 0, 100))
    assert (code, "raw_handle" in message) in [("INVALID_ARGUMENT", True), ("FAILED_PRECONDITION", False)]
    assert "CUDA" in message or "cuda" in message


# ---- A server without the flag


def test_without_the_flag_nothing_is_shared(server, new_region):
    region = new_region(4096)
    rows = random_rows(1)
    with triton.InferenceServerClient(server.target) as plain:
        assert not {"system_shared_memory", "cuda_shared_memory"} & set(plain.get_server_metadata().extensions)
        for call in (lambda: region.register(plain), plain.get_system_shared_memory_status,
                     plain.unregister_system_shared_memory, plain.get_cuda_shared_memory_status,
                     lambda: plain.register_cuda_shared_memory("x", b"eA==", 0, 1), plain.unregister_cuda_shared_memory,
                     lambda: plain.infer(MODEL, [input_in(region, rows)]),
                     lambda: plain.infer(MODEL, [input_of(rows)], outputs=[output_in(region, rows.nbytes)])):
            code, message = refusal(call)
            assert code == "UNIMPLEMENTED"
            assert "--allow_client_shm" in message
            assert region.name not in message
