#!/usr/bin/env bash
# Installs ruff, from PyPI, into an environment of its own, and prints the path of the program. Once it is there, the
# script only prints the path.
#
#   "$(tests/style/setup.sh)" check --fix
#
# On failure the reason is on stderr, and nothing is on stdout.
set -euo pipefail
requirements=$(dirname "${BASH_SOURCE[0]}")/requirements.txt
version=$(sha256sum "$requirements" | cut -c1-12)
home=${SWITCHYARD_STYLE_HOME:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/switchyard}/style-$version

if [[ ! -e $home/complete ]]; then
  rm -rf "$home"
  mkdir -p "$(dirname "$home")"
  python3 -m venv "$home" >&2
  "$home/bin/python" -m pip install --quiet --retries 1 --timeout 15 --disable-pip-version-check --only-binary :all: \
    --requirement "$requirements" >&2
  touch "$home/complete"
fi
echo "$home/bin/ruff"
