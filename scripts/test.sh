#!/usr/bin/env bash
# Installs the dependencies and runs the tests. Arguments go to pytest; --slow adds the slow tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_into_venv "[test]"

arguments=()
for argument in "$@"; do
    if [ "$argument" = "--slow" ]; then arguments+=(-m ""); else arguments+=("$argument"); fi
done
exec .venv/bin/python -m pytest ${arguments[@]+"${arguments[@]}"}
