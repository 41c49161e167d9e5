#!/usr/bin/env python3
"""A decoder whose MoE blocks are on the server: each `mlp` of the model is replaced by an object that calls it.

    switchyard_server --model=jargon-moe=tests/testdata/jargon-moe --local_workers=2 --compute_dtype=fp32
    replace_moe_block.py --checkpoint=tests/testdata/jargon-moe

The decoder is a plain numpy version of the checkpoint's architecture (Qwen3-MoE), put together as in `transformers`:
layers with `self_attn` and `mlp`. In torch it is the same line, `layer.mlp = RemoteMoe(…)`, with `.cpu().numpy()` before the
call and `torch.from_numpy(…)` after it. It continues a text twice, with the experts here and with those of the server, and
compares.
"""

import json
import os
import sys

import ml_dtypes  # noqa: F401 - teaches NumPy bfloat16, which the checkpoint is in
import numpy as np
from safetensors.numpy import load_file

from connection import connect, hidden_states, parse_arguments

# ---- The subject of the example


class RemoteMoe:
    """Stands in for one MoE block: [batch, tokens, D] in and out, computed by a layer of the server."""

    def __init__(self, client, model):
        self._client = client
        self._model = model

    def __call__(self, hidden):
        rows = np.ascontiguousarray(hidden.reshape(-1, hidden.shape[-1]))
        answer = self._client.infer(self._model, [hidden_states(rows)])
        return answer.as_numpy("output").reshape(hidden.shape)


# ---- The decoder, as any framework would have it


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight


class LocalMoe:
    """The block that is replaced: router, top-k, and gated experts."""

    def __init__(self, weights, prefix, config):
        self._router = weights[prefix + "gate.weight"]
        self._experts = [[weights[f"{prefix}experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")]
                         for e in range(len(self._router))]
        self._top_k = config["num_experts_per_tok"]

    def __call__(self, hidden):
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores = softmax(rows @ self._router.T)
        chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :self._top_k]
        weights = np.take_along_axis(scores, chosen, axis=-1)
        weights /= weights.sum(axis=-1, keepdims=True)
        output = np.zeros_like(rows)
        for i, row in enumerate(rows):
            for expert, weight in zip(chosen[i], weights[i]):
                gate, up, down = self._experts[expert]
                gated = gate @ row
                output[i] += weight * (down @ (gated / (1 + np.exp(-gated)) * (up @ row)))
        return output.reshape(hidden.shape)


class Attention:
    """Causal, with grouped keys and values and rotary positions."""

    def __init__(self, weights, prefix, config):
        self._projections = [weights[f"{prefix}{part}_proj.weight"] for part in "qkvo"]
        self._norms = [weights[f"{prefix}{part}_norm.weight"] for part in "qk"]
        self._head_dim = config["head_dim"]
        self._epsilon = config["rms_norm_eps"]
        self._theta = config["rope_parameters"]["rope_theta"]

    def _rotate(self, x):
        frequencies = self._theta ** (-np.arange(0, self._head_dim, 2) / self._head_dim)
        angles = np.arange(x.shape[1])[:, None] * frequencies
        cos, sin = (np.concatenate([f(angles)] * 2, axis=-1)[:, None, :] for f in (np.cos, np.sin))
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], axis=-1) * sin

    def __call__(self, hidden):
        q, k, v = ((hidden @ w.T).reshape(*hidden.shape[:2], -1, self._head_dim) for w in self._projections[:3])
        q, k = (self._rotate(rms_norm(x, norm, self._epsilon)) for x, norm in zip((q, k), self._norms))
        k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(self._head_dim)
        future = np.triu(np.ones(scores.shape[2:], dtype=bool), 1)
        weights = softmax(np.where(future, -np.inf, scores))
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, v)
        return mixed.reshape(*hidden.shape[:2], -1) @ self._projections[3].T


class DecoderLayer:
    def __init__(self, weights, prefix, config):
        self._norms = [weights[prefix + f"{which}_layernorm.weight"] for which in ("input", "post_attention")]
        self._epsilon = config["rms_norm_eps"]
        self.self_attn = Attention(weights, prefix + "self_attn.", config)
        self.mlp = LocalMoe(weights, prefix + "mlp.", config)

    def __call__(self, hidden):
        hidden = hidden + self.self_attn(rms_norm(hidden, self._norms[0], self._epsilon))
        return hidden + self.mlp(rms_norm(hidden, self._norms[1], self._epsilon))


class Decoder:
    def __init__(self, checkpoint):
        with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        stored = load_file(os.path.join(checkpoint, "model.safetensors"))
        weights = {name: tensor.astype(np.float32) for name, tensor in stored.items()}
        self._embeddings = weights["model.embed_tokens.weight"]
        self._norm = weights["model.norm.weight"]
        self._epsilon = config["rms_norm_eps"]
        self.layers = [DecoderLayer(weights, f"model.layers.{i}.", config) for i in range(config["num_hidden_layers"])]

    def logits(self, tokens):
        hidden = self._embeddings[tokens]
        for layer in self.layers:
            hidden = layer(hidden)
        return rms_norm(hidden, self._norm, self._epsilon) @ self._embeddings.T

    def generate(self, tokens, num_new):
        """The most likely tokens, without a cache, and the logits they were chosen by."""
        for _ in range(num_new):
            logits = self.logits(tokens)[:, -1]
            tokens = np.concatenate([tokens, logits.argmax(axis=-1)[:, None]], axis=1)
        return tokens, logits


def main():
    arguments = parse_arguments(__doc__, model="jargon-moe", checkpoint="tests/testdata/jargon-moe", tokens=24,
                                prompt="\nhacker\n n.\n\n    ")
    decoder = Decoder(arguments.checkpoint)
    prompt = np.frombuffer(arguments.prompt.encode(), dtype=np.uint8)[None].astype(np.int64)  # a token is a byte
    here, logits_here = decoder.generate(prompt, arguments.tokens)

    with connect(arguments) as client:
        for index, layer in enumerate(decoder.layers):
            layer.mlp = RemoteMoe(client, f"{arguments.model}.{index}")
        there, logits_there = decoder.generate(prompt, arguments.tokens)

    print("experts here:         ", bytes(here[0].astype(np.uint8)))
    print("experts on the server:", bytes(there[0].astype(np.uint8)))
    error = np.abs(logits_here - logits_there).max() / np.abs(logits_here).max()
    print(f"logits {error:.1e} apart, relative to the largest")
    return 0 if np.array_equal(here, there) and error < 1e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
