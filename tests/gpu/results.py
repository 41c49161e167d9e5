"""The measurements of bench.sh as its reports need them, read from the .jsonl files of one folder."""

import json
import pathlib

LAYERS = {
    "mixtral": "Mixtral 8x7B (4096, 14336, 8, 2)",
    "qwen3": "Qwen3-30B-A3B (2048, 768, 128, 8)",
    "deepseek": "DeepSeek-V3 (7168, 2048, 256, 8)",
    "tutel": "Tutel helloworld (2048, 2048, 2, 2), ReLU with bias",
}

# Names of the peers in tables and plots, by the (source, impl) of their lines.
PEERS = {
    ("torch", "grouped_mm"): "torch grouped_mm",
    ("transformers", "grouped_mm"): "transformers grouped_mm",
    ("transformers", "batched_mm"): "transformers batched_mm",
}


class Results:
    def __init__(self, folder):
        self.lines = []
        for path in sorted(pathlib.Path(folder).glob("*.jsonl")):
            self.lines += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def all(self, **wanted):
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]

    def one(self, **wanted):
        """The last line that matches, or an empty one."""
        found = self.all(**wanted)
        return found[-1] if found else {}

    def row_counts(self, layer):
        return sorted({line["rows"] for line in self.lines
                       if line.get("layer") == layer and line.get("source") in ("switchyard", "torch", "dense")
                       and "rows" in line})

    def ours(self, layer, rows):
        return self.one(source="switchyard", layer=layer, rows=rows)

    def peer(self, peer, layer, rows):
        """The peer's line with figures, not a line that only reports an error."""
        source, impl = peer
        found = [line for line in self.all(source=source, impl=impl, layer=layer, rows=rows) if "step_us" in line]
        return found[-1] if found else {}

    def fastest_peer_us(self, layer, rows):
        times = [line["step_us"] for peer in PEERS if (line := self.peer(peer, layer, rows))]
        return min(times, default=None)

    def dense_us(self, layer, rows):
        """One plain FFN with as many operations through torch, activation included. None for few rows, where it would
        say nothing, because it reads the weights of one expert and the layer those of many."""
        if rows < 512:
            return None
        return self.one(source="dense", layer=layer, rows=rows).get("step_us")

    def limit_us(self, layer, rows):
        """The longest time that the step may take, or None when only the peers were measured."""
        floor, dense = self.ours(layer, rows).get("floor_us"), self.dense_us(layer, rows)
        if rows >= 8192:
            return 1.10 * dense if dense else None
        if rows == 1024:
            return 1.20 * max(floor, dense) if floor and dense else None
        if rows in (1, 16, 128) and floor:
            return floor + 15 if floor < 60 else 1.25 * floor
        return None
