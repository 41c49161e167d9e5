#!/usr/bin/env python3
"""Rows through one MoE layer, compared with what the checkpoint's authors' code answered.

    switchyard_server --model=jargon-moe=tests/testdata/jargon-moe --local_workers=2
    infer.py --golden=tests/testdata/jargon-moe/golden.safetensors

The file has, for every layer N, the tensors model.layers.N.mlp.input and model.layers.N.mlp.output in float32.
"""

import sys

import numpy as np
import tritonclient.grpc as triton
from safetensors.numpy import load_file

from connection import connect, hidden_states, parse_arguments


def main():
    arguments = parse_arguments(__doc__, golden="tests/testdata/jargon-moe/golden.safetensors", rtol=2e-2)
    recorded = load_file(arguments.golden)
    layer = arguments.model.rsplit(".", 1)[1]
    rows, expected = (recorded[f"model.layers.{layer}.mlp.{what}"] for what in ("input", "output"))

    with connect(arguments) as client:
        outputs = [triton.InferRequestedOutput(name) for name in ("output", "expert_ids", "expert_weights")]
        result = client.infer(arguments.model, [hidden_states(rows)], outputs=outputs, request_id="golden")

    print(f"{arguments.model}: {len(rows)} rows of {rows.shape[1]}")
    print("first row: experts", result.as_numpy("expert_ids")[0], "with weights", result.as_numpy("expert_weights")[0])
    # The tolerance suits a bfloat16 checkpoint, because the server then computes in bfloat16. --compute_dtype=fp32
    # comes far closer.
    error = np.abs(result.as_numpy("output") - expected).max() / np.abs(expected).max()
    print(f"largest error, relative to the largest output: {error:.1e}")
    return 0 if error <= arguments.rtol else 1


if __name__ == "__main__":
    sys.exit(main())
