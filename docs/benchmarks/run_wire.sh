#!/usr/bin/env bash
# Measures the service against a bare gRPC echo on this machine and writes docs/benchmarks/wire.md. Takes some three
# minutes; leave the machine idle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=//tests/benchmarks:wire_benchmark
bazel build -c opt "$target"
load=$(cut -d' ' -f1 /proc/loadavg)
results=$(mktemp)
trap 'rm -f "$results"' EXIT

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
versions=$(dpkg-query -W -f='${Package} ${Version}, ' 'libgrpc++1.5*' libprotobuf32 2>/dev/null | sed 's/, $//')
{
  cat <<EOF
# Wire

$(date +%F), ${cpu:-unknown}, $(nproc) cores, load average $load before. $(g++ --version | head -n 1), ${versions:-gRPC unknown}, Linux $(uname -r).
Written by [run_wire.sh](run_wire.sh), which repeats it. [wire.md](../wire.md) says what a request costs and why.

One client, callback API, one connection to each server. The echo is a gRPC server of the front's settings, in a process of
its own, whose \`Forward\` returns the \`ByteBuffer\` it gets. The service is \`switchyard_server\` with one local worker whose
engine returns rows as they are. Rows are 4 KiB (2048 bf16). Bytes are those of the rows, one way. The three take turns,
on closed loops. Stages are medians of one request at a time.

EOF
  bazel run -c opt "$target"
} >"$results"
cat "$results" >docs/benchmarks/wire.md
echo "written: docs/benchmarks/wire.md" >&2
