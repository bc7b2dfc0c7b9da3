#!/usr/bin/env bash
# Checks on a GPU what the tests cannot check on a CPU, in about eight minutes (nine with several GPUs), after
# installing what is missing. Arguments go to check_device.py.
# DEVICE=cpu rehearses the checks at toy sizes. PYTHON= names an interpreter that has the dependencies already.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
needed='import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("torch", "hydra", "safetensors", "regex"))))'
if ! "$python" -c "$needed"; then
    . scripts/setup.sh
    install_into_venv ""
    python=.venv/bin/python
fi
exec "$python" -m scripts.check_device device="${DEVICE:-cuda}" "$@"
