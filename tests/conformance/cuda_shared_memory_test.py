"""Tensors in GPU memory that a client shares. Needs a GPU and its driver; without them each test is skipped and says so."""

import base64
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import cuda_memory
from conftest import MODEL as CHECKPOINT
from conftest import Server

MODEL = "jargon-moe.3"
DIM, TOP_K = 128, 4


@pytest.fixture(scope="module")
def driver():
    try:
        return cuda_memory.Driver()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def client(driver):
    running = Server(f"--model=jargon-moe={CHECKPOINT}", "--local_workers=2", "--compute_dtype=fp32",
                     "--allow_client_shm")
    with triton.InferenceServerClient(running.target) as connected:
        yield connected
    running.terminate()
    assert running.wait() == 0, running.log()


@pytest.fixture(autouse=True)
def no_regions_are_left(client):
    yield
    client.unregister_cuda_shared_memory()
    assert not client.get_cuda_shared_memory_status().regions


@pytest.fixture
def new_memory(driver):
    allocated = []

    def make(byte_size):
        allocated.append(cuda_memory.CudaMemory(driver, byte_size))
        return allocated[-1]

    yield make
    for memory in allocated:
        memory.free()


def random_rows(num_rows, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, DIM)).astype(dtype)


def input_of(rows):
    tensor = triton.InferInput("hidden_states", rows.shape, np_to_triton_dtype(rows.dtype))
    return tensor.set_data_from_numpy(rows)


def input_in(name, rows, offset=0):
    tensor = triton.InferInput("hidden_states", rows.shape, np_to_triton_dtype(rows.dtype))
    return tensor.set_shared_memory(name, rows.nbytes, offset)


def output_in(name, num_bytes, offset=0, output="output"):
    wanted = triton.InferRequestedOutput(output)
    wanted.set_shared_memory(name, num_bytes, offset)
    return wanted


def refusal(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def test_register_status_and_unregister(client, new_memory):
    memory = new_memory(4096)
    client.register_cuda_shared_memory("gpu", memory.handle, 0, 4096)
    [region] = client.get_cuda_shared_memory_status().regions.values()
    assert (region.name, region.device_id, region.byte_size) == ("gpu", 0, 4096)
    assert not client.get_system_shared_memory_status().regions
    assert refusal(lambda: client.register_cuda_shared_memory("gpu", memory.handle, 0, 4096))[0] == "ALREADY_EXISTS"
    assert refusal(lambda: client.register_system_shared_memory("gpu", "/x", 1))[0] == "ALREADY_EXISTS"
    assert refusal(lambda: client.unregister_system_shared_memory("gpu"))[0] == "INVALID_ARGUMENT"
    client.unregister_cuda_shared_memory("gpu")
    client.register_cuda_shared_memory("gpu", memory.handle, 0, 4096)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16],
                         ids=lambda dtype: np.dtype(dtype).name)
def test_input_and_outputs_on_the_gpu(client, new_memory, golden, dtype):
    rows = golden.layer(3)[0].astype(dtype)
    plain = client.infer(MODEL, [input_of(rows)],
                         outputs=[triton.InferRequestedOutput("output"), triton.InferRequestedOutput("expert_ids")])
    routing = len(rows) * TOP_K * 4
    memory = new_memory(2 * rows.nbytes + routing)
    client.register_cuda_shared_memory("gpu", memory.handle, 0, memory.byte_size)
    memory.put(rows)
    response = client.infer(MODEL, [input_in("gpu", rows)], outputs=[
        output_in("gpu", rows.nbytes, rows.nbytes),
        output_in("gpu", routing, 2 * rows.nbytes, "expert_ids")]).get_response()
    assert list(response.raw_output_contents) == [b"", b""]
    np.testing.assert_array_equal(memory.get(dtype, rows.shape, rows.nbytes), plain.as_numpy("output"))
    np.testing.assert_array_equal(memory.get(np.int32, (len(rows), TOP_K), 2 * rows.nbytes),
                                  plain.as_numpy("expert_ids"))
    np.testing.assert_array_equal(memory.get(dtype, rows.shape), rows)


def test_what_is_wrong_is_named(client, new_memory):
    memory = new_memory(4096)

    def register(handle=memory.handle, device_id=0, byte_size=4096):
        return refusal(lambda: client.register_cuda_shared_memory("gpu", handle, device_id, byte_size))

    for code, message in (register(handle=base64.b64encode(b"short")), register(handle=base64.b64encode(b"\x7f" * 64))):
        assert code == "INVALID_ARGUMENT" and "raw_handle" in message
    for device_id in (-1, 1000, 2**40):
        code, message = register(device_id=device_id)
        assert code == "INVALID_ARGUMENT" and "device_id" in message
    for byte_size in (0, 2**40, 2**64 - 1):
        code, message = register(byte_size=byte_size)
        assert code == "INVALID_ARGUMENT" and "byte_size" in message
    client.register_cuda_shared_memory("gpu", memory.handle, 0, 4096)
    for offset in (4096, 4095, 2**63 - 1):
        code, message = refusal(lambda: client.infer(MODEL, [input_in("gpu", random_rows(1), offset)]))
        assert code == "INVALID_ARGUMENT" and "expected a range within the region's 4096 bytes" in message


def test_many_regions_of_one_allocation_at_once(client, new_memory):
    rows = random_rows(64)
    expected = client.infer(MODEL, [input_of(rows)]).as_numpy("output")
    memory = new_memory(2 * rows.nbytes)
    memory.put(rows)
    for i in range(8):
        client.register_cuda_shared_memory(str(i), memory.handle, 0, memory.byte_size)
    for i in range(64):
        at = i * rows[0].nbytes
        client.infer(MODEL, [input_in(str(i % 8), rows[i:i + 1], at)],
                     outputs=[output_in(str((i + 3) % 8), rows[0].nbytes, rows.nbytes + at)])
        if i % 16 == 15:
            client.unregister_cuda_shared_memory("7")
            client.register_cuda_shared_memory("7", memory.handle, 0, memory.byte_size)
    np.testing.assert_allclose(memory.get(np.float32, rows.shape, rows.nbytes), expected, rtol=1e-4, atol=1e-5)


def test_a_client_that_dies_harms_nobody(client):
    rows = random_rows(8)
    with subprocess.Popen([sys.executable, cuda_memory.__file__, str(rows.nbytes)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as owner:
        client.register_cuda_shared_memory("gone", owner.stdout.readline().strip(), 0, rows.nbytes)
        owner.kill()
    try:
        client.infer(MODEL, [input_in("gone", rows)], outputs=[output_in("gone", rows.nbytes)])
    except InferenceServerException as error:
        assert "cuda shared memory" in error.message()
    client.unregister_cuda_shared_memory("gone")
    assert client.infer(MODEL, [input_of(rows)]).as_numpy("output").shape == rows.shape


def test_with_the_helpers_of_tritonclient(client):
    """tritonclient's helpers need the package cuda-python."""
    try:
        import tritonclient.utils.cuda_shared_memory as cuda_shm
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))
    rows = random_rows(100)
    expected = client.infer(MODEL, [input_of(rows)]).as_numpy("output")
    region = cuda_shm.create_shared_memory_region("gpu", 2 * rows.nbytes, 0)
    try:
        cuda_shm.set_shared_memory_region(region, [rows])
        client.register_cuda_shared_memory("gpu", cuda_shm.get_raw_handle(region), 0, 2 * rows.nbytes)
        client.infer(MODEL, [input_in("gpu", rows)], outputs=[output_in("gpu", rows.nbytes, rows.nbytes)])
        both = cuda_shm.get_contents_as_numpy(region, np.float32, (200, DIM))
        np.testing.assert_array_equal(both[100:], expected)
        client.unregister_cuda_shared_memory("gpu")
    finally:
        cuda_shm.destroy_shared_memory_region(region)
