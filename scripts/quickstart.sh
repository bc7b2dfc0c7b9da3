#!/usr/bin/env bash
# Fresh machine -> a trained model, its text, the table of its next tokens, and plots. About five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_into_venv ""

run=out/quickstart
echo "== Training a model of 5 million parameters on 32 of Shakespeare's plays: three minutes on two cores =="
.venv/bin/python train.py experiment=quickstart resume=auto

echo
echo "== How good is that? Beside a compressor that has read the same plays =="
.venv/bin/python -m scripts.compress run_dir=$run

echo
echo "== What it writes =="
.venv/bin/python sample.py checkpoint=$run/best prompt=$'**ROMEO**  \n' max_new_tokens=150 temperature=0.8 seed=1

echo
echo "== Which token comes next? =="
.venv/bin/python sample.py checkpoint=$run/best mode=next_token top=12 plot=$run/next_token.png \
    prompt="The Duke of"

echo
echo "== And which word? The order of these is proven =="
.venv/bin/python sample.py checkpoint=$run/best mode=next_word top=12 plot=$run/next_word.png prompt="The Duke of"

echo
echo "Look at $run/loss.png, $run/next_token.png and $run/next_word.png. Now your own text:"
echo "  .venv/bin/python train.py corpus=PATH_TO_YOUR_TEXT run_dir=out/mine"
