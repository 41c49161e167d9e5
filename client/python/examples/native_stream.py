#!/usr/bin/env python3
"""The native API's stream: layer after layer for several sequences, many requests in flight, answers matched by id.

    native_stream.py --model=jargon-moe --sequences=8 --tokens=10

One extra request names a layer that does not exist: it gets an error, and the stream goes on.
"""

import queue
import sys

import numpy as np

from connection import parse_arguments
from native import NativeClient, connect_native

WRONG = 1 << 32  # an id that no sequence has


def main():
    arguments = parse_arguments(__doc__, model="jargon-moe", sequences=8, tokens=10)
    with connect_native(arguments) as channel:
        client = NativeClient(channel)
        model = next(model for model in client.ListModels(client.message("ListModelsRequest")).models
                     if model.name == arguments.model)
        layers = [layer.name for layer in model.layers]
        states = np.random.default_rng(0).standard_normal(
            (arguments.sequences, model.layers[0].hidden_dim), dtype=np.float32)
        steps = [layer for _ in range(arguments.tokens) for layer in layers]
        done = [0] * arguments.sequences  # of `steps`, by each sequence

        requests = queue.Queue()  # what the stream sends; None ends it
        def send(sequence, layer):
            requests.put(client.message("ForwardStreamRequest", id=sequence, forward=client.request(
                model.name, layer, states[sequence % len(states)][None])))
        for sequence in range(arguments.sequences):
            send(sequence, steps[0])
        send(WRONG, "nowhere")

        error = None
        left = arguments.sequences + 1
        for answer in client.ForwardStream(iter(requests.get, None)):
            if answer.HasField("error"):
                assert answer.id == WRONG, answer.error.message
                error = answer.error.message
                left -= 1
            else:
                state = states[answer.id]
                state += np.frombuffer(answer.response.rows, np.float32)  # the residual connection
                state /= max(1, abs(state).max())
                done[answer.id] += 1
                if done[answer.id] < len(steps):
                    send(answer.id, steps[done[answer.id]])
                else:
                    left -= 1
            if left == 0:
                requests.put(None)

    print(f"{sum(done)} answers for {arguments.sequences} sequences through {len(layers)} layers")
    print("the wrong request got:", error)
    return 0 if done == [len(steps)] * arguments.sequences and error and np.isfinite(states).all() else 1


if __name__ == "__main__":
    sys.exit(main())
