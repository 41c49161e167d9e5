#!/usr/bin/env python3
"""Shows which server this is, what it serves, whether it is well, and what it has done.

    server_status.py
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from connection import connect, hidden_states, parse_arguments, random_rows


def show_models(client):
    for model in client.get_model_repository_index().models:
        config = client.get_model_config(model.name).config
        facts = {key: value.string_value for key, value in config.parameters.items()}
        [tensor] = client.get_model_metadata(model.name).inputs
        print(f"  {model.name}: {model.state}, {tensor.datatype} rows of {tensor.shape[1]}, {facts['num_experts']} experts, "
              f"gate {facts['gate']}")


def show_statistics(client, model):
    [statistics] = client.get_inference_statistics(model).model_stats
    print(f"{model}: {statistics.inference_count} requests in {statistics.execution_count} steps")
    done = statistics.inference_stats
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        spent = getattr(done, stage)
        print(f"  {stage:15} {spent.ns / max(1, spent.count) / 1e3:9.1f} µs on average")
    return done.success.count


def is_healthy(target, service):
    """Asks as probes do, without tritonclient; over a connection without TLS."""
    with grpc.insecure_channel(target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def main():
    arguments = parse_arguments(__doc__)
    with connect(arguments) as client:
        server = client.get_server_metadata()
        print(f"{server.name} {server.version}: {', '.join(server.extensions)}")
        ready = client.is_server_live() and client.is_server_ready() and client.is_model_ready(arguments.model)
        print("live and ready" if ready else "not ready")
        show_models(client)
        before = show_statistics(client, arguments.model)
        for _ in range(10):
            client.infer(arguments.model, [hidden_states(random_rows(client, arguments.model, 64))])
        counted = show_statistics(client, arguments.model) - before
    if not (arguments.tls or arguments.tls_ca):
        print("grpc.health.v1:", "SERVING" if is_healthy(arguments.target, arguments.model) else "NOT SERVING")
    return 0 if ready and counted >= 10 else 1


if __name__ == "__main__":
    sys.exit(main())
