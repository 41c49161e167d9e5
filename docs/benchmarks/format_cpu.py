"""Turns the JSON of the CPU benchmarks into the text of cpu.md.

    format_cpu.py FOLDER    reads engine.json, service.json, exchange.json, plan.json and loading.md
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys

PACKAGES = ["libdnnl2", "libgrpc++1.51", "libopenblas0-pthread", "libgloo0"]

# Text, counter of the numerator, counter of the denominator, counter of the ratio.
ENGINE_RATIOS = [
    ("engine's speed relative to oneDNN alone", "onednn_ms", "engine_ms", "engine_vs_onednn"),
    ("gate and plan relative to the engine's step", "gate_plan_ms", "engine_ms", "gate_plan_share"),
]
SERVICE_RATIOS = [
    ("service's speed relative to oneDNN alone, fastest", "onednn_ms", "service_ms", "service_vs_onednn"),
    ("the same, median", "onednn_ms_median", "service_ms_median", "service_vs_onednn_median"),
]

LOADING = """\
The checkpoint has the same layer twice, in published form, and is in the page cache. "dd" is `dd of=/dev/null bs=1M`.
"read" is the worker's loader with an engine that only sums up every word. "load" is the loader with the CPU engine,
packing included."""


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def runs(folder, name):
    document = json.loads((folder / f"{name}.json").read_text())
    failed = [run["name"] for run in document["benchmarks"] if run.get("error_occurred")]
    if failed:
        sys.exit(f"{name}.json: failed: {', '.join(failed)}")
    return document["benchmarks"]


def load_average(folder):
    return json.loads((folder / "engine.json").read_text())["context"]["load_avg"][0]


def ratio_table(run, ratios):
    rows = [
        [f"{text}: `{ratio}`", f"`{above}` {run[above]:.2f}", f"`{below}` {run[below]:.2f}", f"{run[ratio]:.3f}"]
        for text, above, below, ratio in ratios
    ]
    return table(["", "ms", "ms", "ratio"], rows)


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def versions():
    found = [subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]]
    for package in PACKAGES:
        query = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True)
        if query.returncode == 0:
            found.append(f"{package} {query.stdout}")
    return ", ".join(found)


def service_figures(run):
    return table(
        ["service", "measured"],
        [
            ["rows per second, one request of 1024 rows at a time", f"{run['service_rows_per_s']:.0f}"],
            ["rows per second, two in flight", f"{run['service_rows_per_s_2_in_flight']:.0f}"],
            ["resident memory of the worker, MiB", f"{run['worker_rss_mib']:.0f}"],
            ["its bound, weights × 1.15 + 150 MiB", f"{run['worker_rss_bound_mib']:.0f}"],
            ["resident memory of the front, MiB", f"{run['front_rss_mib']:.0f}"],
        ],
    )


def time_table(all_runs):
    rows = []
    for run in all_runs:
        microseconds = run["real_time"] * {"ns": 1e-3, "us": 1, "ms": 1e3}[run["time_unit"]]
        rate = run.get("bytes_per_second")
        rows.append([f"`{run['name']}`", f"{microseconds:.2f}", f"{rate / 2**30:.2f}" if rate else ""])
    return table(["benchmark", "µs", "GiB/s"], rows)


def main():
    folder = pathlib.Path(sys.argv[1])
    engine, service = runs(folder, "engine")[0], runs(folder, "service")[0]
    print(f"""# CPU

{datetime.date.today()}, {cpu_model()}, {os.cpu_count()} cores, load average {load_average(folder):.1f} before. {versions()}.
Written by [run_cpu.sh](run_cpu.sh), which repeats it.

These figures compare the CPU engine, and the whole service on CPUs, with the bare matrix products of oneDNN. The layer
has the size of Qwen3-30B-A3B's: width 2048, 128 experts of width 768, top-8, bf16; a step has 1024 rows. "oneDNN alone"
computes only the step's matrix products, as bare oneDNN primitives on packed weights. Both sides of a ratio ran with
`OMP_WAIT_POLICY={os.environ.get("OMP_WAIT_POLICY", "")} GOMP_SPINCOUNT={os.environ.get("GOMP_SPINCOUNT", "")}`.

## Engine

{ratio_table(engine, ENGINE_RATIOS)}
## Service

A front with one worker, called over gRPC. oneDNN alone computes the products that result from the service's routing of
the same rows.

{ratio_table(service, SERVICE_RATIOS)}
{service_figures(service)}
## Loading

{LOADING}
{(folder / "loading.md").read_text()}
## Exchange between two ranks

{time_table(runs(folder, "exchange"))}
## Planning

{time_table(runs(folder, "plan"))}""", end="")


main()
