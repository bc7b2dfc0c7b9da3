#!/usr/bin/env bash
# Fresh machine -> the tests, green. Arguments go to pytest; --slow adds the tests that take long.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_into_venv "[test]"

arguments=()
for argument in "$@"; do
    if [ "$argument" = "--slow" ]; then arguments+=(-m ""); else arguments+=("$argument"); fi
done
exec .venv/bin/python -m pytest ${arguments[@]+"${arguments[@]}"}
