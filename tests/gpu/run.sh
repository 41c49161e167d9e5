#!/usr/bin/env bash
# Runs every GPU test of the bundle: from the source tree, after `bazel build -c opt //deploy:bundle`, or from the
# unpacked bundle. Needs python3, CUDA 13 and NCCL. Tests that need more GPUs or tools than there are are skipped, with
# the reason. Ends with `N passed, N failed, N skipped` alone on a line; the exit code is 0 when nothing failed.
#
#   tests/gpu/run.sh                      everything
#   tests/gpu/run.sh --only=unit,golden   some parts: unit, golden, kill, sanitizer
#   tests/gpu/run.sh --only=scorecard     rows 1 to 3 of the scorecard of robustness on two GPUs, as tests/load/run.sh
#                                         prints them; half an hour; --rows=1, --phases=join,load and --quick for less
#   tests/gpu/run.sh --testdata=DIR       where the recorded outputs are; an unpacked bundle has none
#   tests/gpu/run.sh --help               all flags
set -euo pipefail
exec </dev/null
# shellcheck source=tests/gpu/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python3 "$root/tests/gpu/run_tests.py" --root="$root" --testdata="$(dirname "${BASH_SOURCE[0]}")/../testdata" "$@"
