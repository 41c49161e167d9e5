#!/usr/bin/env python3
"""Runs the GPU tests of an unpacked bundle; tests/gpu/run.sh calls it with the libraries found.

Parts, in this order:
  unit       every tests/*_test program but those of the part "kill"
  golden     recorded layers of real checkpoints through the whole service, for numbers of workers and compute types
  kill       tests/kill_test, tests/stuck_test: workers killed, or stuck, under load. Needs two GPUs
  sanitizer  compute-sanitizer's memcheck and racecheck over the small shapes of tests/cuda_engine_*test
  scorecard  rows 1 to 3 of the scorecard of robustness (tests/scorecard), with a table in Markdown. Needs two GPUs and
             half an hour, so it runs only when --only names it
"""

import argparse
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import summarize
from summarize import FAILED, PASSED, SKIPPED, Case

USUAL_PARTS = ["unit", "golden", "kill", "sanitizer"]
PARTS = USUAL_PARTS + ["scorecard"]
KILL_GPUS = 2
KILL_TESTS = {"kill_test": [f"--workers={KILL_GPUS}", "--kills=5"], "stuck_test": []}  # with their flags
SANITIZED_TESTS = ["cuda_engine_test", "cuda_engine_contract_test"]

# Relative tolerance by compute type. The absolute one is the same, times the largest output. They allow about ten
# roundings.
ROUGH = {"bf16": 2e-2, "fp16": 5e-3}
EXACT_RTOL, EXACT_ATOL = 1e-4, 1e-5

LOG_TAIL_LINES = 60


def count_gpus():
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([device for device in chosen.split(",") if device.strip()])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def why_too_few(num_gpus, needed):
    if num_gpus >= needed:
        return ""
    return f"needs {needed} GPUs, this machine has {num_gpus}" if num_gpus else "no GPU on this machine"


def tail(text):
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


class Runner:
    def __init__(self, arguments, work):
        self.root = os.path.abspath(arguments.root)
        self.testdata = os.path.abspath(arguments.testdata)
        self.device = arguments.device
        self.dtypes = arguments.dtypes.split(",")
        self.workers = [int(count) for count in arguments.workers.split(",")]
        self.sanitizer_filter = arguments.sanitizer_filter
        self.timeout_s = arguments.timeout_s
        self.scorecard_flags = [f"--rows={arguments.rows}"]
        self.scorecard_flags += [f"--phases={arguments.phases}"] if arguments.phases else []
        self.scorecard_flags += ["--quick"] if arguments.quick else []
        self.num_gpus = count_gpus()
        self.work = work
        self.cases = []
        self.folder = self.make_runfiles()

    def make_runfiles(self):
        """Makes a folder with programs and data where tests look for them, as in the source tree."""
        folder = os.path.join(self.work, "runfiles")
        for link, target in {
            "server/switchyard_server": "bin/switchyard_server",
            "worker/switchyard_worker": "bin/switchyard_worker",
            "client/switchyard": "bin/switchyard",
            "tests/testdata": self.testdata,
        }.items():
            os.makedirs(os.path.dirname(os.path.join(folder, link)), exist_ok=True)
            os.symlink(os.path.join(self.root, target), os.path.join(folder, link))
        return folder

    def test_programs(self):
        folder = os.path.join(self.root, "tests")
        return sorted(name for name in os.listdir(folder) if name.endswith("_test"))

    def add(self, target, name, result, reason=""):
        self.cases.append(Case("", target, name, result, reason))
        print(f"  {result:8} {f'{target} {name}'.strip()}{': ' if reason else ''}{reason}", flush=True)

    def skip_for_gpus(self, target, needed):
        """Skips the target when there are too few GPUs; returns whether it did."""
        reason = why_too_few(self.num_gpus, needed) if self.device == "cuda" else ""
        if reason:
            self.add(target, "", SKIPPED, reason)
        return bool(reason)

    # ---- Test programs ----------------------------------------------------------------------------------------------

    def run_program(self, label, command):
        """Runs a GoogleTest program, and counts its cases under `label`. An empty run fails: its filter is stale."""
        xml = os.path.join(self.work, f"{label.replace(' ', '-')}.xml")
        environment = {**os.environ, "GTEST_OUTPUT": f"xml:{xml}", "TEST_TMPDIR": self.work}
        log = os.path.join(self.work, "log")
        begin = time.monotonic()
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=output,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            try:
                ended = f"exit code {process.wait(self.timeout_s)}"
            except subprocess.TimeoutExpired:
                ended = f"it ran longer than {self.timeout_s} s"
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
                except ProcessLookupError:
                    pass
                process.wait()
        cases = summarize.cases_of_xml("", label, xml)
        if ended != "exit code 0" and not any(case.result == FAILED for case in cases):
            cases.append(Case("", label, "", FAILED, ended))
        if not cases:
            cases.append(Case("", label, "", FAILED, "no test of it ran"))
        self.cases += cases
        counts = [sum(case.result == result for case in cases) for result in (PASSED, FAILED, SKIPPED)]
        print("  {}: {} passed, {} failed, {} skipped, {:.1f} s".format(label, *counts, time.monotonic() - begin))
        with open(log, encoding="utf-8", errors="replace") as output:
            text = output.read()
        if counts[1]:
            print(tail(text))
        sys.stdout.flush()
        return text

    def run_unit(self):
        programs = [name for name in self.test_programs() if name not in KILL_TESTS]
        if not programs:
            self.add("tests", "*_test", SKIPPED, "the bundle was built without CUDA")
        for name in programs:
            if not self.skip_for_gpus(name, 1):
                self.run_program(name, [os.path.join(self.root, "tests", name)])

    def run_kill(self):
        for name, flags in KILL_TESTS.items():
            program = os.path.join(self.root, "tests", name)
            if not os.path.exists(program):
                self.add(name, "", SKIPPED, "the bundle does not have it")
            elif not self.skip_for_gpus(name, KILL_GPUS):
                text = self.run_program(name, [program, f"--device={self.device}", *flags])
                kills = (line for line in text.splitlines() if line.startswith("kill ") or "kills;" in line)
                print(*("  " + line for line in kills), sep="\n")

    def run_scorecard(self):
        program = os.path.join(self.root, "tests", "scorecard")
        if not os.path.exists(program):
            self.add("scorecard", "", SKIPPED, "the bundle does not have it")
            return
        if self.skip_for_gpus("scorecard", KILL_GPUS):
            return
        command = [program, f"--device={self.device}", *self.scorecard_flags]
        environment = {**os.environ, "TEST_TMPDIR": self.work}
        process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            print(line, end="", flush=True)
            cells = [cell.strip() for cell in line.split(" | ")]
            if re.match(r"\| \d+ ", line) and len(cells) == 5:
                verdict = cells[-1].rstrip("| ")
                result = PASSED if verdict == "holds" else SKIPPED if verdict.startswith("not run") else FAILED
                self.cases.append(Case("", "scorecard", f"row {cells[0].strip('| ')}, {cells[1]}", result, verdict))
        if process.wait() not in (0, 1):
            self.add("scorecard", "", FAILED, f"exit code {process.returncode}")

    # ---- compute-sanitizer ------------------------------------------------------------------------------------------

    def find_sanitizer(self):
        home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
        for path in ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer"):
            if os.access(os.path.join(home, path), os.X_OK):
                return os.path.join(home, path)
        return shutil.which("compute-sanitizer")

    def run_sanitizer(self):
        sanitizer = self.find_sanitizer()
        for name in SANITIZED_TESTS:
            program = os.path.join(self.root, "tests", name)
            for tool in ("memcheck", "racecheck"):
                label = f"{name} under {tool}"
                if not os.path.exists(program):
                    self.add(label, "", SKIPPED, "the bundle was built without CUDA")
                elif sanitizer is None:
                    self.add(label, "", SKIPPED, "there is no compute-sanitizer in CUDA_HOME or PATH")
                elif not self.skip_for_gpus(label, 1):
                    self.run_sanitized(label, sanitizer, tool, program)

    def run_sanitized(self, label, sanitizer, tool, program):
        # Uses an exit code of its own, because findings in tests that pass would go unnoticed otherwise. Failed calls
        # do not count as findings: tests of refusals make some, and the other tests check every call.
        command = [sanitizer, f"--tool={tool}", "--error-exitcode=86"]
        command += ["--report-api-errors=no"] if tool == "memcheck" else []
        text = self.run_program(label, command + [program, f"--gtest_filter={self.sanitizer_filter}"])
        print(*("  " + line for line in text.splitlines() if "SUMMARY" in line), sep="\n")

    # ---- Golden vectors through the service -------------------------------------------------------------------------

    def run_golden(self):
        for num_workers in self.workers:
            for dtype in self.dtypes:
                workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
                target = f"golden vectors, {workers} on {self.device}, {dtype}"
                if not self.skip_for_gpus(target, num_workers):
                    self.run_golden_service(target, num_workers, dtype)

    def run_golden_service(self, target, num_workers, dtype):
        command = [os.path.join(self.root, "bin/switchyard_server"), f"--local_workers={num_workers}",
                   f"--device={self.device}", f"--compute_dtype={dtype}", "--port=0", "--http_port=0"]
        command += [f"--model={model}={self.testdata}/{model}" for model in golden_models(self.testdata)]
        with open(os.path.join(self.work, "server.log"), "w+", encoding="utf-8") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
            # Ends a server that hangs; then everything that waits for it goes on.
            watchdog = threading.Timer(self.timeout_s, lambda: os.killpg(server.pid, signal.SIGKILL))
            watchdog.start()
            failed_before = sum(case.result == FAILED for case in self.cases)
            try:
                self.check_service(target, server, dtype)
            finally:
                watchdog.cancel()
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            if sum(case.result == FAILED for case in self.cases) > failed_before:
                log.seek(0)
                print(tail(log.read()), flush=True)

    def check_service(self, target, server, dtype):
        ready = server.stdout.readline()
        if not ready.startswith("READY "):
            self.add(target, "", FAILED, f"the server ended with {server.wait()} and not with a READY line")
            return
        address = dict(field.split("=", 1) for field in ready.split()[1:])["grpc"]
        ranks, models = self.ask(target, address, "status", "ranks"), self.ask(target, address, "models", "models")
        devices = [rank["device"] for rank in ranks]
        if not all(device.startswith(self.device) for device in devices):
            self.add(target, "", FAILED, f"workers are on {', '.join(devices)}, expected {self.device}")
        for model in models:
            for layer in model["layers"]:
                self.check_layer(target, address, model["name"], layer["name"], dtype)
        server.send_signal(signal.SIGTERM)
        code = server.wait()
        self.add(target, "drain", PASSED if code == 0 else FAILED, "" if code == 0 else f"exit code {code}")

    def client(self, address, command, *flags):
        return subprocess.run(
            [os.path.join(self.root, "bin/switchyard"), command, f"--target={address}", "--format=json", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ask(self, target, address, command, field):
        """A list that the client prints. An empty list is a failure."""
        answer = self.client(address, command)
        found = json.loads(answer.stdout)[field] if answer.returncode == 0 else []
        if not found:
            self.add(target, command, FAILED, answer.stderr.strip() or f"it names no {field}")
        return found

    def check_layer(self, target, address, model, layer, dtype):
        golden = f"{self.testdata}/{model}/golden.safetensors"
        paths = [path for path in golden_paths(golden) if layer_of(path) == layer]
        if not paths:
            self.add(target, f"{model} layer {layer}", FAILED, f"{golden} has no vectors of this layer")
        for path in paths:
            self.check_vectors(target, address, model, layer, dtype, golden, path)

    def check_vectors(self, target, address, model, layer, dtype, golden, path):
        rtol = ROUGH.get(dtype, EXACT_RTOL)
        largest = largest_value(golden, f"{path}output")
        atol = rtol * largest if dtype in ROUGH else EXACT_ATOL * max(1.0, largest)
        answer = self.client(address, "infer", f"--model={model}", f"--layer={layer}", f"--input={golden}:{path}input",
                             f"--expect={golden}:{path}output", f"--rtol={rtol}", f"--atol={atol}")
        name = f"{model} layer {layer}"
        if not answer.stdout:
            self.add(target, name, FAILED, answer.stderr.strip())
            return
        found = json.loads(answer.stdout)
        self.add(target, name, PASSED if answer.returncode == 0 else FAILED, "" if answer.returncode == 0 else
                 f"{found['elements_beyond_tolerance']} of {found['elements']} elements are off, the largest error is "
                 f"{found['max_abs_error']}")


def golden_models(folder):
    """The folders in `folder` that hold a checkpoint with vectors; none where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if os.path.exists(f"{folder}/{name}/golden.safetensors"))


def golden_paths(path):
    """The module paths under which vectors are stored, each with its dot; "" for a bare layer."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return [name[:-len("input")] for name in header if name == "input" or name.endswith(".input")]


def layer_of(path):
    """The service's name for the layer at a module path: 3, encoder.1, or 0 for a bare one."""
    index = re.search(r"\d+", path)
    stack = re.search(r"encoder|decoder", path)
    return (f"{stack[0]}." if stack else "") + (index[0] if index else "0")


def largest_value(path, key):
    """The largest magnitude in an fp32 tensor of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.tell()
        begin, end = header[key]["data_offsets"]
        file.seek(data + begin)
        values = struct.unpack(f"<{(end - begin) // 4}f", file.read(end - begin))
    return max(abs(value) for value in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="the unpacked bundle")
    parser.add_argument("--testdata", required=True, help="the folder with small checkpoints and recorded outputs")
    parser.add_argument("--only", default=",".join(USUAL_PARTS), help="parts to run, with commas between them")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu checks the golden part itself")
    parser.add_argument("--dtypes", default="fp32,bf16,fp16,fp64", help="compute types of the golden part")
    parser.add_argument("--workers", default="1,2", help="numbers of workers of the golden part")
    parser.add_argument("--sanitizer_filter", default="*Small*", help="--gtest_filter under compute-sanitizer")
    parser.add_argument("--timeout_s", type=int, default=300, help="how long one program may run")
    parser.add_argument("--rows", default="1,2,3", help="rows of the scorecard")
    parser.add_argument("--phases", default="", help="phases of its row 3, as join,load; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes for the scorecard")
    arguments = parser.parse_args()
    if not golden_models(arguments.testdata):
        parser.error(f"--testdata: {arguments.testdata} has no folder with a golden.safetensors; a source tree has them "
                     "in tests/testdata")
    parts = arguments.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--only: unknown part '{unknown[0]}'; there are: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as work:
        runner = Runner(arguments, work)
        print(f"GPUs: {runner.num_gpus}")
        for part in PARTS:
            if part in parts:
                print(f"\n==== {part}", flush=True)
                getattr(runner, f"run_{part}")()
    return summarize.print_summary(runner.cases)


if __name__ == "__main__":
    sys.exit(main())
