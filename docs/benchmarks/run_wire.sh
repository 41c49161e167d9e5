#!/usr/bin/env bash
# Measures the service against a bare gRPC echo on this machine and writes docs/benchmarks/wire.md. Takes some three
# minutes; leave the machine idle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bazel build -c opt //tests/benchmarks:wire_benchmark
results=$(mktemp)
trap 'rm -f "$results"' EXIT
bazel-bin/tests/benchmarks/wire_benchmark >"$results"
cat "$results" >docs/benchmarks/wire.md
echo "written: docs/benchmarks/wire.md" >&2
