#!/usr/bin/env python3
"""Draws what bench.sh measured: time of a step relative to the floor, for every layer and number of rows.

    plot.py FOLDER gpu.png
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from results import LAYERS, PEERS, Results

STYLES = {  # colour, marker, line
    "Switchyard": ("#d62728", "o", "-"),
    "torch grouped_mm": ("#1f77b4", "s", "-"),
    "transformers grouped_mm": ("#2ca02c", "^", "-"),
    "transformers batched_mm": ("#2ca02c", "v", ":"),
    "dense FFN of as many operations": ("#7f7f7f", "x", "--"),
    "at most": ("#d62728", "", ":"),
}


def curves(results, layer):
    """{name: [(rows, time / floor)]}"""
    found = {name: [] for name in STYLES}
    for rows in results.row_counts(layer):
        floor = results.ours(layer, rows).get("floor_us")
        if not floor:
            continue
        times = {
            "Switchyard": results.ours(layer, rows).get("step_us"),
            **{name: results.peer(peer, layer, rows).get("step_us") for peer, name in PEERS.items()},
            "dense FFN of as many operations": results.dense_us(layer, rows),
            "at most": results.limit_us(layer, rows),
        }
        for name, time in times.items():
            if time:
                found[name].append((rows, time / floor))
    return {name: points for name, points in found.items() if points}


def draw_layer(axes, title, layer_curves):
    for name, points in layer_curves.items():
        colour, marker, line = STYLES[name]
        axes.plot(*zip(*points), color=colour, marker=marker, linestyle=line, markersize=4, label=name,
                  linewidth=2 if name == "Switchyard" else 1.2)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [1, 1.5, 2, 3, 5, 10, 20]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0.7, max(2, min(30, 1.2 * max(y for points in layer_curves.values() for _, y in points))))
    rows = sorted({x for points in layer_curves.values() for x, _ in points})
    axes.set_xticks(rows, [str(x) for x in rows], rotation=45, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("rows of a step")
    axes.grid(alpha=0.25)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    results = Results(sys.argv[1])
    layers = {layer: found for layer in LAYERS if (found := curves(results, layer))}
    if not layers:
        print("plot.py: no step was measured with its floor: no plot")
        return
    try:
        import matplotlib
    except ImportError:
        print(f"plot.py: there is no matplotlib: no plot. Elsewhere: plot.py {sys.argv[1]} {sys.argv[2]}")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(2, len(layers))
    figure, grid = pyplot.subplots(-(-len(layers) // columns), columns, figsize=(6.2 * columns, 4 * -(-len(layers) // columns)),
                                   squeeze=False, layout="constrained")
    for axes in grid.flat[len(layers):]:
        axes.axis("off")
    handles = {}
    for axes, (layer, found) in zip(grid.flat, layers.items()):
        draw_layer(axes, LAYERS[layer], found)
        axes.set_ylabel("time / floor")
        handles.update(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    gpus = results.one(source="machine").get("gpus", [""])
    figure.suptitle(f"MoE layers in bf16 on one {gpus[0].split(',')[0]}: time of a step relative to the floor".replace("  ", " "))
    figure.savefig(sys.argv[2], dpi=130)
    print(f"written: {sys.argv[2]}")


if __name__ == "__main__":
    main()
