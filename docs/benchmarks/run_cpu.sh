#!/usr/bin/env bash
# Measures the CPU path on this machine and writes docs/benchmarks/cpu.md. Takes a few minutes; leave the machine idle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

targets=(//moe/experts/cpu:cpu_engine_benchmark //tests/benchmarks:service_benchmark
  //moe/exchange:exchange_benchmark //moe/plan:plan_benchmark //worker/loading:expert_loader_benchmark)
# How OpenMP's threads wait is what the front sets for its workers: oneDNN alone and the engine are to wait alike.
export OMP_WAIT_POLICY=active GOMP_SPINCOUNT=20000

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# measure NAME TARGET FILTER: one run, its figures as JSON
measure() {
  echo "measuring $1" >&2
  bazel run -c opt "$2" -- --benchmark_format=json --benchmark_filter="$3" >"$results/$1.json"
}

bazel build -c opt "${targets[@]}"
measure engine "${targets[0]}" '^Ratios'
measure service "${targets[1]}" '^ServiceRatios'
measure exchange "${targets[2]}" '/(1024|32768|2097152|16777216)/'
measure plan "${targets[3]}" .
echo "measuring loading" >&2
bazel run -c opt "${targets[4]}" >"$results/loading.md"
python3 docs/benchmarks/format_cpu.py "$results" >"$results/cpu.md"
mv "$results/cpu.md" docs/benchmarks/cpu.md
echo "written: docs/benchmarks/cpu.md"
