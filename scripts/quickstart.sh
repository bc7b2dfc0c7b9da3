#!/usr/bin/env bash
# From a fresh machine to a trained model, its text, its next tokens and words, and plots: five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_into_venv "[gguf]"  # gguf: to import SmolLM2

run=out/quickstart
echo "== Training a model of 5 million parameters on 32 of Shakespeare's plays (three minutes on two cores) =="
.venv/bin/python train.py experiment=quickstart resume=auto

echo
echo "== Bits per byte on six held-out plays, compared with xz =="
.venv/bin/python -m scripts.compress run_dir=$run

echo
echo "== A text from the model =="
.venv/bin/python sample.py checkpoint=$run/best prompt=$'**ROMEO**  \n' max_new_tokens=150 temperature=0.8 seed=1

echo
echo "== The most probable next tokens =="
.venv/bin/python sample.py checkpoint=$run/best mode=next_token top=12 plot=$run/next_token.png \
    prompt="The Duke of"

echo
echo "== The most probable next words, in a certified order =="
.venv/bin/python sample.py checkpoint=$run/best mode=next_word top=12 plot=$run/next_word.png prompt="The Duke of"

echo
echo "Plots: $run/loss.png, $run/next_token.png, $run/next_word.png. To train on your own text:"
echo "  .venv/bin/python train.py corpus=PATH_TO_YOUR_TEXT run_dir=out/mine"
