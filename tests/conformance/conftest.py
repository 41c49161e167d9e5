"""A front with two CPU workers for the tests of a module, and the vectors recorded from the model that it serves."""

import os
import signal
import subprocess
import tempfile

import pytest
import tritonclient.grpc as triton
from safetensors.numpy import load_file

MODEL = "tests/testdata/jargon-moe"
LAYER_NAMES = ["0", "1", "2", "3"]


class Server:
    """switchyard_server as a child process."""

    def __init__(self, *flags):
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["server/switchyard_server", "--port=0", "--http_port=0", "--device=cpu", *flags],
            stdout=subprocess.PIPE, stderr=self._log, text=True)
        ready = self._process.stdout.readline()
        fields = dict(field.split("=") for field in ready.split()[1:])
        if "grpc" not in fields:
            self._process.wait()
            raise RuntimeError("the server did not start:\n" + self.log())
        self.target = fields["grpc"]
        self.http = fields["http"]

    def log(self):
        self._log.seek(0)
        return self._log.read().decode()

    def terminate(self):
        self._process.send_signal(signal.SIGTERM)

    def wait(self):
        """Waits for the process; returns its exit status."""
        return self._process.wait(timeout=60)


@pytest.fixture(scope="session")
def server():
    running = Server(f"--model=jargon-moe={MODEL}", "--local_workers=2", "--compute_dtype=fp32")
    yield running
    running.terminate()
    assert running.wait() == 0, running.log()


@pytest.fixture(scope="session")
def client(server):
    with triton.InferenceServerClient(server.target) as connected:
        yield connected


class Golden:
    """Recorded rows of every layer."""

    def __init__(self, path):
        self._tensors = load_file(path)

    def layer(self, layer):
        """Input and output rows of a layer."""
        path = f"model.layers.{layer}.mlp"
        rows = [self._tensors[f"{path}.{what}"] for what in ("input", "output")]
        return [tensor.reshape(-1, tensor.shape[-1]) for tensor in rows]


@pytest.fixture(scope="session")
def golden():
    return Golden(os.path.join(MODEL, "golden.safetensors"))
