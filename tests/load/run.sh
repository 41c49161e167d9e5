#!/usr/bin/env bash
# Runs the storms at full size against the server of this build, for a quarter of an hour. Prints a table in Markdown,
# as in docs/benchmarks/robustness.md. The figures that storms are compared with are measured in the same run, so
# nothing else should run beside it. Arguments go to the program:
#   tests/load/run.sh --only=cancel --cancels=10000          see --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bazel build -c opt //tests/load:robustness >&2
versions=$(dpkg-query -W -f '${Package} ${Version}, ' libgrpc++1.51 libprotobuf32 libgomp1 2>/dev/null | sed 's/, $//')
cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)
echo "$(date +%F), $cpu, $(nproc) cores, load average $(cut -d' ' -f1 /proc/loadavg) before. $versions."
echo
TEST_TMPDIR=$(mktemp -d)  # the servers' logs
export TEST_TMPDIR
trap 'rm -rf "$TEST_TMPDIR"' EXIT
program=$PWD/bazel-bin/tests/load/robustness
cd "$program.runfiles/switchyard"
"$program" "$@"
