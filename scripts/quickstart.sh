#!/usr/bin/env bash
# Fresh machine -> a trained model, its text, the table of its next tokens, and plots. About five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_into_venv ""

run=out/quickstart
if [ -f "$run/latest" ]; then
    echo "$run holds a trained model already; its training goes on if it was interrupted."
fi
.venv/bin/python train.py experiment=quickstart resume=auto

echo
echo "== What it writes =="
.venv/bin/python sample.py checkpoint=$run/best prompt="ROMEO" max_new_tokens=150 temperature=0.8 seed=1

echo
echo "== Which token comes next? =="
.venv/bin/python sample.py checkpoint=$run/best mode=next_token top=12 plot=$run/next_token.png \
    prompt="To be, or not to be, that is the"

echo
echo "Look at $run/loss.png and $run/next_token.png. Now your own text:"
echo "  .venv/bin/python train.py corpus=PATH_TO_YOUR_TEXT run_dir=out/mine"
