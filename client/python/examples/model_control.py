#!/usr/bin/env python3
"""Unloads a model while the server runs, and loads it again.

    model_control.py --model=jargon-moe

Here --model is the model as a whole, without a layer. The server's other models keep answering meanwhile, and requests
that were accepted before are still answered.
"""

import sys
import time

from tritonclient.utils import InferenceServerException

from connection import connect, parse_arguments


def layers_of(client, model):
    """Names and states, in the order of the layers."""
    return {m.name: m.state for m in client.get_model_repository_index().models if m.name.startswith(model + ".")}


def show(client, model, what):
    states = sorted(set(layers_of(client, model).values())) or ["gone"]
    print(f"{what}: {', '.join(states)}")


def main():
    arguments = parse_arguments(__doc__, model="jargon-moe")
    model = arguments.model
    with connect(arguments) as client:
        layers = list(layers_of(client, model))
        show(client, model, "before")
        if not layers:
            print(f"there is no model {model}")
            return 1

        client.unload_model(model)
        show(client, model, "unloaded")
        still_ready = [layer for layer in layers if client.is_model_ready(layer)]
        try:
            client.get_model_metadata(layers[0])
            found = "an answer, though it is unloaded"
        except InferenceServerException as error:
            found = error.status()
        print(f"{layers[0]} now gets: {found}")

        begin = time.monotonic()
        client.load_model(model)
        show(client, model, f"loaded in {time.monotonic() - begin:.1f} s")
        ready = all(client.is_model_ready(layer) for layer in layers)
    return 0 if ready and not still_ready else 1


if __name__ == "__main__":
    sys.exit(main())
