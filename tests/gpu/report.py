#!/usr/bin/env python3
"""Turns what bench.sh measured into tables.

    report.py FOLDER                     prints them
    report.py FOLDER --document=gpu.md   puts them between the marks of that file instead
    report.py --self_check               tries itself on made-up figures
"""

import argparse
import datetime
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from results import LAYERS, PEERS, Results

BEGIN, END = "<!-- Written by tests/gpu/bench.sh: begin -->\n", "<!-- Written by tests/gpu/bench.sh: end -->\n"

EXCHANGE_LIMIT = 1.2
SPEEDUP_LIMIT = 1.8


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def us(value):
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio(above, below):
    return f"{above / below:.2f}" if above and below else "–"


def verdict(results, layer, rows):
    """Compares the step with its limit and with every peer."""
    step = results.ours(layer, rows).get("step_us")
    if step is None:
        return "not measured"
    misses = []
    limit = results.limit_us(layer, rows)
    if limit and step > limit:
        misses.append(f"limit by {100 * (step / limit - 1):.0f} %")
    for peer, name in PEERS.items():
        theirs = results.peer(peer, layer, rows).get("step_us")
        if theirs and step >= theirs:
            misses.append(f"{name} by {100 * (step / theirs - 1):.0f} %")
    return "**missed** " + ", ".join(misses) if misses else "ok"


def step_table(results, layer):
    rows = []
    for num_rows in results.row_counts(layer):
        ours, dense = results.ours(layer, num_rows), results.dense_us(layer, num_rows)
        step, floor = ours.get("step_us"), ours.get("floor_us")
        peers = [results.peer(peer, layer, num_rows) for peer in PEERS]
        rows.append(
            [str(num_rows), us(step), us(ours.get("loop_us"))]
            + [us(peer.get("step_us")) + (" (eager)" if peer.get("mode") == "eager" else "") for peer in peers]
            + [us(dense), us(ours.get("cublas_dense_us")), us(floor), ratio(step, dense), ratio(step, floor),
               ratio(results.fastest_peer_us(layer, num_rows), step), us(results.limit_us(layer, num_rows)),
               verdict(results, layer, num_rows)])
    header = ["rows", "**step**", "back to back", *PEERS.values(), "dense", "dense, GEMMs alone", "floor", "step / dense",
              "step / floor", "fastest peer / step", "at most", ""]
    return table(header, rows)


def whole_table(results):
    rows = []
    for layer in LAYERS:
        for num_rows in results.row_counts(layer):
            ours = results.ours(layer, num_rows).get("whole_us")
            theirs = [results.peer(peer, layer, num_rows).get("whole_us") for peer in PEERS]
            rows.append([layer, str(num_rows), us(ours), *map(us, theirs),
                         ratio(min((time for time in theirs if time), default=None), ours)])
    return table(["layer", "rows", "**whole**", *PEERS.values(), "fastest peer / whole"], rows)


def ranks_table(results):
    rows = []
    for line in results.all(source="ranks"):
        speedup = line["speedup"]
        rows.append([line["layer"], line["exchange"], str(line["ranks"]), str(line["rows_per_rank"]), str(line["chunks"]),
                     us(line["one_us"]),
                     us(line["step_us"]), f"{line['one_rows_per_s']:.3g}", f"{line['rows_per_s']:.3g}", f"{speedup:.2f}",
                     "ok" if speedup >= SPEEDUP_LIMIT else f"**missed** {SPEEDUP_LIMIT}"])
    return table(["layer", "exchange", "GPUs", "rows per GPU", "chunks", "one GPU, µs", "all, µs", "one GPU, rows/s", "all, rows/s",
                  "speedup", ""], rows)


def exchange_table(results):
    rows = []
    for line in results.all(benchmark="device_exchange"):
        rows.append([str(line["bytes_per_rank"]), us(line["peers_us"]), us(line["bare_us"]), us(line["ours_us"]),
                     us(line["direct_us"]), us(line["ours_done_us"]), us(line["direct_done_us"]), f"{line['ratio']:.2f}", "ok" if line["ratio"] <= EXCHANGE_LIMIT else f"**missed** {EXCHANGE_LIMIT}"])
    return table(["bytes to each rank", "NCCL to the peers, µs", "NCCL with the own block, µs", "AllToAllV over NCCL, µs",
                  "direct, µs", "over NCCL until done, µs", "direct until done, µs", "ratio", ""],
                 rows)


def service_table(results):
    rows = []
    for line in results.all(source="service"):
        rows.append([line["layer"], str(line["workers"]), line["exchange"], str(line["rows"]), str(line["concurrency"])]
                    + ([f"{line['rows_per_s']:.0f}", f"{line['p50_ms']:.2f}", f"{line['p99_ms']:.2f}"]
                       if "rows_per_s" in line else ["–"] * 3) + [line.get("error", "")])
    return table(["layer", "GPUs", "exchange", "rows per request", "requests in flight", "rows/s", "p50, ms", "p99, ms", ""], rows)


def machine_text(results):
    machine, versions = results.one(source="machine"), results.one(source="versions")
    ceilings, torch = results.one(source="ceilings"), results.one(source="torch_ceilings")
    gpus = machine.get("gpus", [])
    parts = [str(datetime.date.today())]
    if gpus:
        parts.append(f"{len(gpus)} × {gpus[0]}, {machine['cpu']}, {machine['cores']} cores")
    if versions:
        parts.append(f"torch {versions['torch']}, transformers {versions['transformers']}")
    text = ". ".join(parts) + ".\n"
    if ceilings:
        text += (f"Large bf16 GEMMs: {ceilings['tflops']:.0f} TFLOP/s; copy within the GPU {ceilings['copy_tb_s']:.2f} TB/s, from"
                 f" the host {ceilings['h2d_gb_s']:.0f} GB/s, to it {ceilings['d2h_gb_s']:.0f} GB/s.")
        if "tflops" in torch:
            text += f" Through torch: {torch['tflops']:.0f} TFLOP/s, {torch['copy_tb_s']:.2f} TB/s."
        text += "\n"
    return text


def failures_text(results):
    lines = [f"- {line.get('source')} {line.get('impl', '')} {line.get('layer', '')} {line.get('rows', '')}: {line['error']}"
             for line in results.lines if "error" in line and line.get("source") not in ("switchyard", "service")]
    eager = {(line["source"], line["impl"], line["reason"]) for line in results.lines
             if line.get("mode") == "eager" and line.get("reason")}
    lines += [f"- {source} {impl} ran without a CUDA graph: {reason}" for source, impl, reason in sorted(eager)]
    return "\n".join(lines) + "\n" if lines else ""


def report(results):
    sections = [machine_text(results)]
    for layer, name in LAYERS.items():
        if results.row_counts(layer):
            sections.append(f"## {name}: one step, µs\n\n{step_table(results, layer)}")
    if any("whole_us" in line for line in results.lines):
        sections.append(f"## Host memory to host memory, µs\n\n{whole_table(results)}")
    for title, there, make in (
            ("A second GPU", results.all(source="ranks"), ranks_table),
            ("Exchange between two GPUs", results.all(benchmark="device_exchange"), exchange_table),
            ("The whole service", results.all(source="service"), service_table)):
        if there:
            sections.append(f"## {title}\n\n{make(results)}")
    failures = failures_text(results)
    if failures:
        sections.append(f"## Measurements that failed or ran differently\n\n{failures}")
    return "\n".join(sections)


def put_into(path, text):
    document = pathlib.Path(path).read_text(encoding="utf-8")
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        sys.exit(f"report.py: {path}: expected the two marks {BEGIN.strip()} and {END.strip()} once")
    before, rest = document.split(BEGIN)
    pathlib.Path(path).write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1], encoding="utf-8")


def self_check():
    made_up = [
        {"source": "machine", "gpus": ["GPU"], "cpu": "CPU", "cores": 2},
        {"source": "versions", "torch": "2", "transformers": "5"},
        {"source": "ceilings", "tflops": 800, "copy_tb_s": 4, "h2d_gb_s": 50, "d2h_gb_s": 50},
        {"source": "torch", "impl": "grouped_mm", "layer": "qwen3", "rows": 1024, "step_us": 500, "whole_us": 900,
         "mode": "graph"},
        {"source": "transformers", "impl": "batched_mm", "layer": "qwen3", "rows": 1, "step_us": 30, "mode": "eager",
         "reason": "why"},
        {"source": "transformers", "impl": "grouped_mm", "layer": "tutel", "error": "no such block"},
        {"source": "ranks", "layer": "qwen3", "exchange": "direct", "ranks": 2, "rows_per_rank": 8192, "chunks": 4, "one_us": 900.0,
         "step_us": 950.0, "one_rows_per_s": 9.1e6, "rows_per_s": 1.72e7, "speedup": 1.89},
        {"benchmark": "device_exchange", "bytes_per_rank": 4096, "peers_us": 6, "bare_us": 8, "ours_us": 10, "direct_us": 5,
         "ours_done_us": 50, "direct_done_us": 13, "ratio": 1.25},
        {"source": "service", "layer": "qwen3", "workers": 1, "exchange": "auto", "rows": 1, "concurrency": 1, "rows_per_s": 9, "p50_ms": 1,
         "p99_ms": 2},
        {"source": "service", "layer": "qwen3", "workers": 2, "exchange": "nccl", "rows": 1, "concurrency": 1, "error": "gone"},
    ]
    for rows, step, floor, dense in ((1, 32.9, 18, 40), (128, 400, 285, 300), (1024, 360, 285, 300), (8192, 1300, 791, 1110)):
        made_up.append({"source": "switchyard", "layer": "qwen3", "rows": rows, "step_us": step, "loop_us": step,
                        "whole_us": 2 * step, "cublas_dense_us": dense, "floor_us": floor})
        made_up.append({"source": "dense", "layer": "qwen3", "rows": rows, "step_us": dense})
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "a.jsonl").write_text("\n".join(map(json.dumps, made_up)) + "\n\n", encoding="utf-8")
        results = Results(folder)
        document = path / "gpu.md"
        document.write_text("# GPU\n" + BEGIN + "old\n" + END + "after\n", encoding="utf-8")
        put_into(document, report(results))
        put_into(document, report(results))
        text = document.read_text(encoding="utf-8")
    assert [results.limit_us("qwen3", rows) for rows in (1, 128, 1024)] == [33, 356.25, 360]
    assert abs(results.limit_us("qwen3", 8192) - 1221) < 1e-9 and results.limit_us("qwen3", 512) is None
    assert verdict(results, "qwen3", 1) == "**missed** transformers batched_mm by 10 %"
    assert verdict(results, "qwen3", 128) == "**missed** limit by 12 %"
    assert verdict(results, "qwen3", 1024) == "ok" and verdict(results, "qwen3", 8192) == "**missed** limit by 6 %"
    assert text.startswith("# GPU\n") and text.endswith("after\n") and "old" not in text and text.count("## Qwen3") == 1
    for expected in ("| 1.89 | ok |", "| 1.25 | **missed** 1.2 |", "| gone |", "30.0 (eager)", "graph: why", "no such block",
                     "| qwen3 | 1024 | 720 | 900 | – | – | 1.25 |"):
        assert expected in text, f"{expected} is not in\n{text}"
    print("report.py: all well")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--document")
    parser.add_argument("--self_check", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_check:
        self_check()
    elif arguments.folder is None:
        parser.error("name the folder with the results")
    elif arguments.document:
        put_into(arguments.document, report(Results(arguments.folder)))
    else:
        print(report(Results(arguments.folder)), end="")


if __name__ == "__main__":
    main()
