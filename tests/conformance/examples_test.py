"""Runs the examples of client/python/examples as a reader would, against a real front."""

import re
import subprocess
import sys

import pytest

from certificates import Authority
from conftest import MODEL as CHECKPOINT
from conftest import Server

FOLDER = "client/python/examples"

# The text that each example prints. Each also checks itself, and reports the outcome by its exit code. The last one
# takes the model away for a while, which is why it is the last.
PRINTS = {
    "infer": "first row: experts .* with weights",
    "infer_asyncio": "200 requests of one row in",
    "infer_stream": "100 answers, .*\nthe wrong request got: NOT_FOUND: ",
    "native_stream": "320 answers for 8 sequences through 4 layers\nthe wrong request got: layer: .*nowhere",
    "infer_shared_memory": "2097152 bytes of rows and as many of output in shared memory; the answer took .*",
    "server_status": r"switchyard .*\nlive and ready\n  jargon-moe.0: READY, FP32 rows of 128, 16 experts(.*\n)*grpc.health.v1: SERVING",
    "replace_moe_block": r"server: b'\\nhacker\\n n.\\n\\n    \[from the subject of \{co'",
    "model_control": r"before: READY\nunloaded: UNAVAILABLE\njargon-moe.0 now gets: StatusCode.UNAVAILABLE\nloaded in .* s: READY",
}


@pytest.fixture(scope="module")
def target():
    running = Server(f"--model=jargon-moe={CHECKPOINT}", "--local_workers=2", "--compute_dtype=fp32",
                     "--allow_client_shm")
    yield running.target
    running.terminate()
    assert running.wait() == 0, running.log()


def run(name, *flags):
    """The output of an example, which must succeed and must not warn."""
    ran = subprocess.run([sys.executable, f"{FOLDER}/{name}.py", *flags], capture_output=True, text=True, timeout=120,
                         check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", PRINTS)
def test_example(target, name):
    assert re.search(PRINTS[name], run(name, f"--target={target}"))


@pytest.mark.parametrize("name", ["infer", "infer_asyncio", "infer_stream", "native_stream"])
def test_example_over_mutual_tls_with_a_token(secured, name):
    assert re.search(PRINTS[name], run(name, *secured))


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """Flags for a client of a front that asks for a certificate and a token."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(str(folder / "authority"))
    token = folder / "token"
    token.write_text("# openssl rand -hex 32\n" + "0123456789abcdef" * 4 + "\n", encoding="ascii")
    cert, key = authority.issue("front")
    running = Server(f"--model=jargon-moe={CHECKPOINT}", "--local_workers=2", f"--tls_cert={cert}", f"--tls_key={key}",
                     f"--tls_client_ca={authority.root}", f"--auth_token_file={token}")
    cert, key = authority.issue("client")
    yield [f"--target={running.target}", f"--tls_ca={authority.root}", f"--tls_cert={cert}", f"--tls_key={key}",
           f"--token_file={token}"]
    running.terminate()
    assert running.wait() == 0, running.log()
