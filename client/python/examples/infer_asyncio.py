#!/usr/bin/env python3
"""Many requests at once from one asyncio program. The server joins them into few steps.

    infer_asyncio.py --requests=200
"""

import asyncio
import sys
import time

import numpy as np
import tritonclient.grpc.aio as triton_aio

from connection import connect, hidden_states, parse_arguments


async def run(arguments):
    async with connect(arguments, triton_aio) as client:
        metadata = await client.get_model_metadata(arguments.model)
        width = metadata.inputs[0].shape[1]
        rows = np.random.default_rng(0).standard_normal((arguments.requests, width), dtype=np.float32)

        async def infer(part):
            result = await client.infer(arguments.model, [hidden_states(part)])
            return result.as_numpy("output")

        begin = time.monotonic()
        answers = await asyncio.gather(*(infer(rows[i:i + 1]) for i in range(arguments.requests)))
        elapsed = time.monotonic() - begin
        together = await infer(rows)

    print(f"{arguments.requests} requests of one row in {elapsed * 1e3:.0f} ms")
    difference = np.abs(np.concatenate(answers) - together).max() / np.abs(together).max()
    print(f"against the same rows in one request: {difference:.1e} apart, which is rounding")
    return 0 if difference < 2e-2 else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(run(parse_arguments(__doc__, requests=200))))
