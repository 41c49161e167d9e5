#!/usr/bin/env bash
# Measures the service against a bare gRPC echo on this machine and writes docs/benchmarks/wire.md, or the file named by
# WIRE_OUTPUT. Takes some three minutes; leave the machine idle. Arguments go to the benchmark:
#   WIRE_OUTPUT=/tmp/four.md docs/benchmarks/run_wire.sh --connections=4
set -euo pipefail
output=$(realpath -m "${WIRE_OUTPUT:-$(dirname "${BASH_SOURCE[0]}")/wire.md}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bazel build -c opt //tests/benchmarks:wire_benchmark
results=$(mktemp)
trap 'rm -f "$results"' EXIT
bazel-bin/tests/benchmarks/wire_benchmark "$@" >"$results"
cat "$results" >"$output"
echo "written: $output" >&2
