"""The examples of client/python/examples as a reader would run them, against a real front."""

import re
import subprocess
import sys

import pytest

from conftest import MODEL as CHECKPOINT
from conftest import Server

FOLDER = "client/python/examples"

# What each prints, beside what it checks itself and says with its exit code.
PRINTS = {
    "infer": "first row: experts .* with weights",
    "infer_asyncio": "200 requests of one row in",
    "infer_stream": "100 answers, .*\nthe wrong request got: NOT_FOUND: ",
    "native_stream": "320 answers for 8 sequences through 4 layers\nthe wrong request got: layer: .*nowhere",
    "infer_shared_memory": "2097152 bytes of rows and as many of output in shared memory; the answer took .*",
    "server_status": r"switchyard .*\nlive and ready\n  jargon-moe.0: READY, FP32 rows of 128, 16 experts(.*\n)*grpc.health.v1: SERVING",
    "replace_moe_block": r"server: b'\\nhacker\\n n.\\n\\n    \[from the subject of \{core\}'",
}


@pytest.fixture(scope="module")
def target():
    running = Server(f"--model=jargon-moe={CHECKPOINT}", "--local_workers=2", "--compute_dtype=fp32",
                     "--allow_client_shm")
    yield running.target
    running.terminate()
    assert running.wait() == 0, running.log()


def run(name, *flags):
    """Its output. It must succeed, and must not warn."""
    ran = subprocess.run([sys.executable, f"{FOLDER}/{name}.py", *flags], capture_output=True, text=True, timeout=120,
                         check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", PRINTS)
def test_example(target, name):
    assert re.search(PRINTS[name], run(name, f"--target={target}"))
