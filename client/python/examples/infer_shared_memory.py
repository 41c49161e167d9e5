#!/usr/bin/env python3
"""Rows and answers in shared memory: the messages say only where they are. Client and server share a host.

    switchyard_server --model=jargon-moe=tests/testdata/jargon-moe --local_workers=2 --allow_client_shm
    infer_shared_memory.py
"""

import os
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm

from connection import connect, hidden_states, parse_arguments, random_rows


def main():
    arguments = parse_arguments(__doc__, rows=4096)
    with connect(arguments) as client:
        rows = random_rows(client, arguments.model, arguments.rows)
        region, key = f"rows of {os.getpid()}", f"/switchyard_example_{os.getpid()}"
        # One region holds both: the rows first, then room for the output.
        memory = shm.create_shared_memory_region(region, key, 2 * rows.nbytes, create_only=True)
        try:
            shm.set_shared_memory_region(memory, [rows])
            client.register_system_shared_memory(region, key, 2 * rows.nbytes)

            given = triton.InferInput("hidden_states", rows.shape, "FP32")
            given.set_shared_memory(region, rows.nbytes)
            taken = triton.InferRequestedOutput("output")
            taken.set_shared_memory(region, rows.nbytes, offset=rows.nbytes)
            response = client.infer(arguments.model, [given], outputs=[taken]).get_response()
            output = shm.get_contents_as_numpy(memory, np.float32, rows.shape, offset=rows.nbytes).copy()
        finally:
            # The server keeps the memory until it is told to let go; destroy removes the object itself.
            client.unregister_system_shared_memory(region)
            shm.destroy_shared_memory_region(memory)
        expected = client.infer(arguments.model, [hidden_states(rows)]).as_numpy("output")

    print(f"{rows.nbytes} bytes of rows and as many of output in shared memory; the answer took {response.ByteSize()}")
    difference = np.abs(output - expected).max() / np.abs(expected).max()
    print(f"against the same rows in a message: {difference:.1e} apart")
    return 0 if difference < 2e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
