"""Shared parts of the examples: flags for the server's address and its security, and a client made of them.

The flags have the names that the `switchyard` command line gives them.
"""

import argparse

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype


def parse_arguments(description, model="jargon-moe.3", **more):
    """Arguments of the command line. `more` are flags of one example: name → default."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--target", default="127.0.0.1:8001", help="HOST:PORT of the server")
    parser.add_argument("--model", default=model, help="model and layer, NAME.LAYER")
    parser.add_argument("--tls", action="store_true", help="connect over TLS; implied by the flags below")
    parser.add_argument("--tls_ca", help="PEM file of the roots to trust instead of the system's")
    parser.add_argument("--tls_cert", help="PEM file of the certificate to show to a server that asks for one")
    parser.add_argument("--tls_key", help="PEM file of its key")
    parser.add_argument("--token_file", help="file whose first token goes with every call")
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    return parser.parse_args()


def read_token(path):
    """The first token of a file. Lines are TOKEN, NAME:TOKEN, or # comments."""
    with open(path, encoding="ascii") as file:
        lines = [line.strip() for line in file]
    return next(line for line in lines if line and not line.startswith("#")).split(":", 1)[-1]


class BearerToken(triton.InferenceServerClientPlugin):
    """Sends a token with every call, streams included."""

    def __init__(self, token):
        self._header = "Bearer " + token

    def __call__(self, request):
        request.headers["authorization"] = self._header


def connect(arguments, module=triton):
    """A client of `module`: tritonclient.grpc, or tritonclient.grpc.aio."""
    files = {"root_certificates": arguments.tls_ca, "certificate_chain": arguments.tls_cert,
             "private_key": arguments.tls_key}
    client = module.InferenceServerClient(arguments.target, ssl=arguments.tls or any(files.values()), **files)
    if arguments.token_file:
        client.register_plugin(BearerToken(read_token(arguments.token_file)))
    return client


def hidden_states(rows):
    """The one input of every layer: [rows, D] in float64, float32, float16 or ml_dtypes.bfloat16."""
    tensor = triton.InferInput("hidden_states", rows.shape, np_to_triton_dtype(rows.dtype))
    return tensor.set_data_from_numpy(rows)


def random_rows(client, model, num_rows, seed=0):
    """Random rows as wide as the model's layer."""
    width = client.get_model_metadata(model).inputs[0].shape[1]
    return np.random.default_rng(seed).standard_normal((num_rows, width), dtype=np.float32)
