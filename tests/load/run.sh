#!/usr/bin/env bash
# The storms at full size against this build's server, a table in Markdown on stdout; about fifteen minutes. What they
# are compared with is measured in the same run, so nothing else should run beside it. Arguments go to the program:
#   tests/load/run.sh --only=cancel --cancels=10000      see --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bazel build -c opt //tests/load:robustness >&2
program=$PWD/bazel-bin/tests/load/robustness
cd "$program.runfiles/__main__"
"$program" "$@"
