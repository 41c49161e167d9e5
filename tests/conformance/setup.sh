#!/usr/bin/env bash
# Installs the clients of requirements.txt, from PyPI, into an environment of their own, and prints its python. When
# they are installed already, it only prints. Then:
#
#   bazel test -c opt --test_env=SWITCHYARD_CONFORMANCE_PYTHON="$(tests/conformance/setup.sh)" //tests/conformance/...
#
# On failure the reason is on stderr, and nothing is on stdout.
set -euo pipefail
requirements=$(dirname "${BASH_SOURCE[0]}")/requirements.txt
version=$(sha256sum "$requirements" | cut -c1-12)
home=${SWITCHYARD_CONFORMANCE_HOME:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/switchyard}/conformance-$version

if [[ ! -e $home/complete ]]; then
  rm -rf "$home"
  mkdir -p "$(dirname "$home")"
  python3 -m venv "$home" >&2
  "$home/bin/python" -m pip install --quiet --retries 1 --timeout 15 --disable-pip-version-check --requirement "$requirements" >&2
  # The binary of perf_analyzer needs newer C libraries than some systems have; perf_analyzer_test.py then says so.
  "$home/bin/python" -m pip install --quiet --retries 1 --timeout 15 --disable-pip-version-check perf-analyzer==2.60.0 >&2 ||
    echo "without perf_analyzer" >&2
  touch "$home/complete"
fi
echo "$home/bin/python"
