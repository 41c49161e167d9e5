#!/usr/bin/env python3
"""Loads the whole service on its GPUs through `switchyard bench`, for layers with made-up weights.

    bench_service.py --root=BUNDLE --workers=1,2 --out=service.jsonl

One JSON object a line: rows per request and per second, and latencies, of a closed loop of requests.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading

LAYERS = {
    "qwen3": "synthetic:dim=2048,hidden=768,experts=128,topk=8,act=silu,glu=1,bias=0,dtype=bf16",
    "mixtral": "synthetic:dim=4096,hidden=14336,experts=8,topk=2,act=silu,glu=1,bias=0,dtype=bf16",
}
# (rows per request, requests in flight)
LOADS = [(1, 1), (1, 64), (16, 8), (128, 8), (1024, 1), (1024, 8), (4096, 8)]
MAX_BATCH_ROWS = 16384
START_TIMEOUT_S = 120


class Service:
    """A front with its workers, all of them ended on the way out."""

    def __init__(self, root, layer, num_workers, device, exchange):
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [os.path.join(root, "bin/switchyard_server"), f"--model=bench={LAYERS[layer]}",
             f"--local_workers={num_workers}", f"--device={device}", f"--exchange={exchange}",
             f"--max_batch_rows={MAX_BATCH_ROWS}",
             "--port=0", "--http_port=0"],
            stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True)
        watchdog = threading.Timer(START_TIMEOUT_S, self.kill)
        watchdog.start()
        ready = self.process.stdout.readline()
        watchdog.cancel()
        self.address = dict(field.split("=", 1) for field in ready.split()[1:]).get("grpc", "")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def last_words(self):
        self.log.seek(0)
        return "\n".join(self.log.read().splitlines()[-20:])


def bench(root, address, num_rows, concurrency, duration_s):
    answer = subprocess.run(
        [os.path.join(root, "bin/switchyard"), "bench", f"--target={address}", "--model=bench", f"--rows={num_rows}",
         f"--concurrency={concurrency}", f"--channels={min(4, concurrency)}", f"--duration={duration_s}",
         "--warmup=0.5", "--dtype=bf16", "--format=json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not answer.stdout:
        return {"error": answer.stderr.strip()}
    point = json.loads(answer.stdout)["results"][0]
    fields = {key: point[key] for key in ("rows_per_s", "requests_per_s", "ok", "failed")}
    fields.update({f"{name}_ms": point["latency_ms"][name] for name in ("p50", "p99")})
    if point["failed"] or not point["ok"]:
        fields["error"] = json.dumps(point["errors"]) if point["failed"] else "no request ended in time"
    return fields


def variants(arguments):
    """One worker exchanges nothing, so it is measured once."""
    for layer in arguments.layers.split(","):
        for num_workers in (int(count) for count in arguments.workers.split(",")):
            for exchange in arguments.exchange.split(",") if num_workers > 1 else ["auto"]:
                yield layer, num_workers, exchange


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--workers", default="1", help="numbers of workers, with commas between them")
    parser.add_argument("--layers", default=",".join(LAYERS), help="some of them: %(default)s")
    parser.add_argument("--device", default="cuda", help="cpu tries this script; layers of this size are slow there")
    parser.add_argument("--exchange", default="auto", help="of several workers, with commas between them")
    parser.add_argument("--duration", type=float, default=2, help="seconds of each load")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    all_well = True
    with open(arguments.out, "w", encoding="utf-8") as out:
        for layer, num_workers, exchange in variants(arguments):
            with Service(arguments.root, layer, num_workers, arguments.device, exchange) as service:
                if not service.address:
                    print(f"{layer}, {num_workers} workers: the server did not start\n{service.last_words()}")
                    all_well = False
                    continue
                for num_rows, concurrency in LOADS:
                    fields = {"source": "service", "layer": layer, "workers": num_workers, "exchange": exchange,
                              "rows": num_rows, "concurrency": concurrency,
                              **bench(arguments.root, service.address, num_rows, concurrency, arguments.duration)}
                    all_well &= "error" not in fields
                    line = json.dumps(fields)
                    print(line, flush=True)
                    print(line, file=out, flush=True)
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
