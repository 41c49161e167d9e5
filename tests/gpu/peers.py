#!/usr/bin/env python3
"""Times what others do with the layers that cuda_engine_benchmark times, in bf16: one JSON object a line.

    peers.py --out=peers.jsonl [--shapes=mixtral,qwen3,deepseek,tutel] [--rows=1,16,…] [--min_time_ms=100]
    peers.py --device=cpu --tiny      tries all of it at small sizes on the CPU; the times mean nothing

  torch          rows sorted by expert, torch's grouped_mm for both products, a gather and a small bmm to combine
  transformers   the experts of transformers' own block, with experts_implementation grouped_mm and, where the copies of
                 the weights that it makes are not absurd, batched_mm
  dense          as many operations in one plain FFN

step_us: rows, expert indices and weights on the GPU to combined rows on the GPU, without gating. whole_us: rows in
page-locked host memory to rows in host memory, gating included, the host's clock. Both are medians over inputs that take
turns, captured as CUDA graphs; code that cannot be captured runs eagerly, and `mode` and `reason` say so. step_us is
the GPU's time, the host's own time to launch hidden. A failure becomes a line with an `error`, and the rest goes on.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

SPIN_CYCLES = {"graph": 400_000, "eager": 4_000_000}  # longer than the host takes to launch the timed work
MAX_BATCHED_BYTES = 4 << 30
NUM_INPUTS = 8  # for small steps; large steps have 2
ROWS = [1, 16, 128, 512, 1024, 4096, 8192, 32768]


@dataclasses.dataclass
class Shape:
    key: str
    dim: int
    width: int
    num_experts: int
    top_k: int
    gated: bool = True
    rows: list = dataclasses.field(default_factory=lambda: ROWS)

    @property
    def expert_bytes(self):
        return 2 * (3 if self.gated else 2) * self.dim * self.width


SHAPES = [
    Shape("mixtral", 4096, 14336, 8, 2),
    Shape("qwen3", 2048, 768, 128, 8),
    Shape("deepseek", 7168, 2048, 256, 8),
    Shape("tutel", 2048, 2048, 2, 2, gated=False, rows=sorted(ROWS + [16384, 131072])),
]
TINY_SHAPES = [
    Shape("mixtral", 64, 96, 8, 2, rows=[1, 16]),
    Shape("qwen3", 32, 64, 16, 4, rows=[1, 16]),
    Shape("tutel", 32, 32, 2, 2, gated=False, rows=[1, 16]),
]


def grouped_mm(x, weight, offsets):
    """x [S, K] sorted by expert, weight [E, N, K]."""
    function = getattr(F, "grouped_mm", None) or torch._grouped_mm
    return function(x, weight.transpose(-2, -1), offs=offsets)


class Weights:
    """Random weights of one layer, shared by all implementations."""

    def __init__(self, shape, device):
        def random(*size, scale):
            # Made directly in bf16 and in place, because fp32 copies of the largest layer would not fit beside it.
            return torch.empty(*size, dtype=torch.bfloat16, device=device).normal_(std=scale)

        up_width = (2 if shape.gated else 1) * shape.width
        self.up = random(shape.num_experts, up_width, shape.dim, scale=shape.dim**-0.5)  # gate above up when gated
        self.down = random(shape.num_experts, shape.dim, shape.width, scale=shape.width**-0.5)
        self.router = random(shape.num_experts, shape.dim, scale=shape.dim**-0.5)
        self.up_bias = None if shape.gated else random(shape.num_experts, up_width, scale=0.5)
        self.down_bias = None if shape.gated else random(shape.num_experts, shape.dim, scale=0.5)


def activate(shape, up):
    if not shape.gated:
        return F.relu_(up)
    gate, up = up.chunk(2, dim=-1)
    return F.silu(gate) * up


class TorchMoe:
    """grouped_mm with as few other kernels as plain torch allows."""

    def __init__(self, shape, weights):
        self.shape, self.weights = shape, weights
        self.experts = torch.arange(shape.num_experts, device=weights.up.device)

    def route(self, x):
        probabilities = F.softmax(F.linear(x, self.weights.router).float(), dim=-1)
        values, ids = torch.topk(probabilities, self.shape.top_k, dim=-1)
        return ids, (values / values.sum(dim=-1, keepdim=True)).to(x.dtype)

    def experts_only(self, x, ids, values):
        num_rows, top_k = ids.shape
        sorted_ids, order = ids.view(-1).sort()
        offsets = torch.searchsorted(sorted_ids, self.experts, right=True).to(torch.int32)
        up = grouped_mm(x[order // top_k], self.weights.up, offsets)
        if self.weights.up_bias is not None:
            up += self.weights.up_bias[sorted_ids]
        down = grouped_mm(activate(self.shape, up), self.weights.down, offsets)
        if self.weights.down_bias is not None:
            down += self.weights.down_bias[sorted_ids]
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        return torch.bmm(values.unsqueeze(1), down[place].view(num_rows, top_k, -1)).squeeze(1)

    def whole(self, x):
        return self.experts_only(x, *self.route(x))


class TransformersMoe:
    """transformers' block for the layer, around the given weights. Only for gated experts, because it has no others."""

    def __init__(self, shape, weights, implementation):
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        if not shape.gated:
            raise NotImplementedError("transformers has no block of plain experts with biases")
        config = Qwen3MoeConfig(
            hidden_size=shape.dim, moe_intermediate_size=shape.width, num_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k, norm_topk_prob=True, hidden_act="silu")
        config._experts_implementation = implementation
        with torch.device("meta"):
            self.block = Qwen3MoeSparseMoeBlock(config).eval()

        def parameter(tensor):
            return torch.nn.Parameter(tensor, requires_grad=False)

        self.block.experts.gate_up_proj = parameter(weights.up)
        self.block.experts.down_proj = parameter(weights.down)
        self.block.gate.weight = parameter(weights.router)

    def experts_only(self, x, ids, values):
        return self.block.experts(x, ids, values)

    def whole(self, x):
        output = self.block(x.unsqueeze(0))
        return (output[0] if isinstance(output, tuple) else output).view_as(x)


class Runner:
    """Times functions on the GPU. It runs on the CPU only so that this file can be tried without a GPU."""

    def __init__(self, device, min_time_ms):
        self.device, self.min_time_ms = device, min_time_ms
        self.on_gpu = device != "cpu"

    def synchronize(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def release(self):
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def capture(self, function):
        """(callable, mode, reason): the replay of a graph, or the function itself."""
        function()  # first call, for everything that is set up lazily
        self.synchronize()
        if not self.on_gpu:
            return function, "eager", "no GPU"
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                function()
            graph.replay()
            torch.cuda.synchronize()
            return graph.replay, "graph", ""
        except Exception as error:  # a peer that cannot be captured runs eagerly
            torch.cuda.synchronize()
            return function, "eager", one_line(error)

    def repeat(self, once):
        """The median time of once(i) in microseconds, over repetitions that fill the time."""
        once(0)
        times, begin = [], time.perf_counter()
        while len(times) < 5 or (time.perf_counter() - begin) * 1e3 < self.min_time_ms:
            times.append(once(len(times)))
        return statistics.median(times)

    def gpu_us(self, run, mode, prepare=lambda i: None):
        if not self.on_gpu:
            return self.wall_us(lambda i: (prepare(i), run()))
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def once(i):
            prepare(i)
            torch.cuda._sleep(SPIN_CYCLES[mode])
            begin.record()
            run()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e3

        return self.repeat(once)

    def wall_us(self, run):
        def once(i):
            begin = time.perf_counter()
            run(i)
            self.synchronize()
            return (time.perf_counter() - begin) * 1e6

        return self.repeat(once)


def one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class Report:
    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8") if path else None

    def add(self, **fields):
        line = json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in fields.items()})
        print(line, flush=True)
        if self.file:
            print(line, file=self.file, flush=True)


class LayerPeers:
    """All implementations of one layer. Measures one number of rows after the other."""

    def __init__(self, shape, runner, report):
        self.shape, self.runner, self.report = shape, runner, report
        self.weights = Weights(shape, runner.device)
        self.implementations = []
        self.add_implementation("torch", "grouped_mm", lambda: TorchMoe(shape, self.weights))
        for name in ("grouped_mm", "batched_mm"):
            self.add_implementation("transformers", name, lambda name=name: TransformersMoe(shape, self.weights, name))

    def add_implementation(self, source, name, make):
        try:
            self.implementations.append((source, name, make()))
        except Exception as error:
            self.report.add(source=source, impl=name, layer=self.shape.key, error=one_line(error))

    def measure(self, num_rows):
        shape, device = self.shape, self.runner.device
        num_inputs = NUM_INPUTS if num_rows <= 1024 else 2
        self.inputs = []
        for _ in range(num_inputs):
            x = torch.empty(num_rows, shape.dim, dtype=torch.bfloat16, device=device).normal_()
            ids = torch.rand(num_rows, shape.num_experts, device=device).topk(shape.top_k, dim=-1).indices
            values = torch.rand(num_rows, shape.top_k, device=device) + 0.1
            self.inputs.append((x, ids, (values / values.sum(dim=-1, keepdim=True)).to(torch.bfloat16)))
        outputs = {}
        for source, name, moe in self.implementations:
            if name == "batched_mm" and num_rows * shape.top_k * shape.expert_bytes > MAX_BATCHED_BYTES:
                continue
            fields = {"source": source, "impl": name, "layer": shape.key, "rows": num_rows}
            for measure in (lambda: self.measure_step(moe, outputs, (source, name)), lambda: self.measure_whole(moe)):
                try:
                    fields.update(measure())
                except Exception as error:
                    fields.setdefault("error", one_line(error))
                self.runner.release()
            self.report.add(**fields)
        self.compare(outputs, num_rows)
        outputs.clear()
        self.inputs = []
        self.runner.release()
        self.measure_dense(num_rows)

    def measure_step(self, moe, outputs, key):
        x, ids, values = (tensor.clone() for tensor in self.inputs[0])

        def step():
            moe.experts_only(x, ids, values)

        def prepare(i):
            for target, source in zip((x, ids, values), self.inputs[i % len(self.inputs)]):
                target.copy_(source)

        outputs[key] = moe.experts_only(x, ids, values)[:64].float()
        run, mode, reason = self.runner.capture(step)
        result = {"step_us": self.runner.gpu_us(run, mode, prepare), "mode": mode}
        return {**result, "reason": reason} if reason else result

    def measure_whole(self, moe):
        pinned = self.runner.on_gpu
        host_in = torch.empty(self.inputs[0][0].shape, dtype=torch.bfloat16, pin_memory=pinned).normal_()
        host_out = torch.empty(host_in.shape, dtype=torch.bfloat16, pin_memory=pinned)
        x = torch.empty_like(self.inputs[0][0])

        def whole():
            x.copy_(host_in, non_blocking=True)
            host_out.copy_(moe.whole(x), non_blocking=True)

        run, mode, _ = self.runner.capture(whole)
        return {"whole_us": self.runner.wall_us(lambda i: run()), "whole_mode": mode}

    def compare(self, outputs, num_rows):
        """Checks that all implementations compute the same thing; otherwise the line says how far they are apart."""
        values = list(outputs.values())
        for key, value in outputs.items():
            difference = ((value - values[0]).norm() / values[0].norm()).item()
            if not difference < 2e-2:
                self.report.add(source=key[0], impl=key[1], layer=self.shape.key, rows=num_rows,
                                error=f"differs from {next(iter(outputs))} by {difference:.3g} of its norm")

    def measure_dense(self, num_rows):
        shape = self.shape
        fields = {"source": "dense", "layer": shape.key, "rows": num_rows}
        try:
            x = torch.empty(num_rows * shape.top_k, shape.dim, dtype=torch.bfloat16, device=self.runner.device).normal_()
            up, down = self.weights.up[0], self.weights.down[0]

            def ffn():
                return F.linear(activate(shape, F.linear(x, up)), down)

            run, mode, _ = self.runner.capture(ffn)
            fields.update(step_us=self.runner.gpu_us(run, mode), mode=mode)
            x = run = None
        except Exception as error:
            fields["error"] = one_line(error)
        self.report.add(**fields)
        self.runner.release()


def measure_ceilings(runner, report):
    size = 8192 if runner.on_gpu else 64
    fields = {"source": "torch_ceilings"}
    try:
        tflops = 0.0
        for m, n, k in ((size, size, size), (2 * size, size, size), (2 * size, 2 * size, size)):
            x = torch.empty(m, k, dtype=torch.bfloat16, device=runner.device).normal_()
            w = torch.empty(n, k, dtype=torch.bfloat16, device=runner.device).normal_()
            tflops = max(tflops, 2e-6 * m * n * k / runner.gpu_us(lambda: F.linear(x, w), "graph"))
        source = torch.empty((1 << 30) if runner.on_gpu else 4096, dtype=torch.bfloat16, device=runner.device).normal_()
        target = torch.empty_like(source)
        copy_us = runner.gpu_us(lambda: target.copy_(source), "graph")
        fields.update(tflops=tflops, copy_tb_s=2e-6 * 2 * source.numel() / copy_us)
    except Exception as error:
        fields["error"] = one_line(error)
    report.add(**fields)
    runner.release()


def versions(device):
    found = {"source": "versions", "torch": torch.__version__}
    try:
        import transformers

        found["transformers"] = transformers.__version__
    except ImportError as error:
        found["transformers"] = one_line(error)
    if device != "cpu":
        found.update(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="")
    parser.add_argument("--shapes", default="mixtral,qwen3,deepseek,tutel")
    parser.add_argument("--rows", default="")
    parser.add_argument("--min_time_ms", type=float, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("peers.py: torch finds no GPU")
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    report, runner = Report(arguments.out), Runner(arguments.device, arguments.min_time_ms)
    report.add(**versions(arguments.device))
    measure_ceilings(runner, report)
    chosen_rows = [int(rows) for rows in arguments.rows.split(",") if rows]
    for shape in TINY_SHAPES if arguments.tiny else SHAPES:
        if shape.key not in arguments.shapes.split(","):
            continue
        rows = [num_rows for num_rows in shape.rows if not chosen_rows or num_rows in chosen_rows]
        if not rows:
            continue
        try:
            layer = LayerPeers(shape, runner, report)
            for num_rows in rows:
                layer.measure(num_rows)
        except Exception as error:  # for example too little memory; the other layers go on
            report.add(source="peers", layer=shape.key, error=one_line(error))
        layer = None
        runner.release()


if __name__ == "__main__":
    main()
