#!/usr/bin/env bash
# Starts run.py with the python that has the clients; see setup.sh.
exec "${SWITCHYARD_CONFORMANCE_PYTHON:-python3}" tests/conformance/run.py "$@"
