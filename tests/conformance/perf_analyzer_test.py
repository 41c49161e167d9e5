"""perf_analyzer, unmodified, against a front: concurrency sweeps over unary calls and streams, with its own checks of the
server's statistics and metrics.

SWITCHYARD_PERF_ANALYZER names the program; without it, `perf_analyzer` is looked up beside the python that runs this
and on the PATH. Its published binary needs glibc 2.38. Where it cannot run, the tests are skipped with its own error
message.
"""

import csv
import os
import shutil
import subprocess
import sys

import pytest

from conftest import MODEL as CHECKPOINT
from conftest import Server

WIDTH = 128


def find_program():
    """The path of perf_analyzer, and the reason when it cannot be used."""
    program = os.environ.get("SWITCHYARD_PERF_ANALYZER") or shutil.which(
        "perf_analyzer", path=os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""))
    if not program:
        return None, "no perf_analyzer here: pip install perf-analyzer, which needs glibc 2.38"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if version.returncode != 0:
        return None, f"{program} does not run: {(version.stderr or version.stdout).strip().splitlines()[0]}"
    return program, ""


PROGRAM, REASON = find_program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=REASON)


def sweep(server, tmp_path, concurrencies, *flags, rows=16):
    """Runs perf_analyzer. Returns its table: one row of numbers for every concurrency in "START:END:STEP"."""
    report = tmp_path / "report.csv"
    command = [PROGRAM, "-i", "grpc", "-u", server.target, "-m", "jargon-moe.3", f"--shape=hidden_states:{rows},{WIDTH}",
               f"--concurrency-range={concurrencies}", "-f", str(report), "--verbose-csv", *flags]
    # Measures in windows of few requests, whose throughputs may differ tenfold: the speed of a busy machine does not
    # matter here.
    command += ["--measurement-mode=count_windows", "--measurement-request-count=100", "-p", "500", "-s", "999"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    # perf_analyzer may complain only about missing GPU metrics, which a server without GPUs does not have.
    complaints = [line for line in output.splitlines()
                  if ("WARNING" in line or "rror" in line) and "nv_gpu_" not in line]
    assert not complaints, output
    with open(report, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check(table, concurrencies):
    assert sorted(int(row["Concurrency"]) for row in table) == concurrencies
    for row in table:
        assert float(row["Inferences/Second"]) > 0
        # The server's own times of the stages fill most of the latency that the client saw, and never exceed it.
        stages = sum(float(row[f"Server {stage}"])
                     for stage in ("Queue", "Compute Input", "Compute Infer", "Compute Output"))
        assert 0 < stages <= float(row["Avg latency"])


def test_sweep_over_unary_calls(server, tmp_path):
    check(sweep(server, tmp_path, "1:8:7"), [1, 8])


def test_sweep_over_asynchronous_calls(server, tmp_path):
    check(sweep(server, tmp_path, "4:16:12", "--async"), [4, 16])


def test_sweep_over_streams(server, tmp_path):
    check(sweep(server, tmp_path, "4:16:12", "--async", "--streaming"), [4, 16])


def test_collects_the_metrics(server, tmp_path):
    check(sweep(server, tmp_path, "4", "--collect-metrics", f"--metrics-url={server.http}/metrics",
                "--metrics-interval=100"), [4])


def test_sweep_over_shared_memory(tmp_path):
    sharing = Server(f"--model=jargon-moe={CHECKPOINT}", "--local_workers=2", "--compute_dtype=fp32",
                     "--allow_client_shm")
    check(sweep(sharing, tmp_path, "1:8:7", "--shared-memory=system"), [1, 8])
    sharing.terminate()
    assert sharing.wait() == 0, sharing.log()
