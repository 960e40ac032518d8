#!/usr/bin/env bash
# Makes nano as it ships: trains it, chooses the floors of its head, calibrates its explanations.
#     launch/nano_release.sh PHOTOS TEST_PHOTOS OUT [--config.data.workers=15 ...]
# PHOTOS are clean ones to train on, TEST_PHOTOS are kept out; further flags go to training. OUT/nano
# is the model. Safe to run again: a run that stopped continues.
set -euo pipefail
PYTHON=${PYTHON:-python}
SAMPLES=${SAMPLES:-8}  # restored to choose the floors, of each degradation
PROMPTS=${PROMPTS:-40} # that the floors are learnt from, of each composite

if [ $# -lt 3 ]; then
  echo "usage: $0 PHOTOS TEST_PHOTOS OUT [flags of training]" >&2
  exit 1
fi
photos=$(realpath "$1") test_photos=$(realpath "$2") out=$(realpath -m "$3")
shift 3
cd "$(dirname "$0")/.."

"$PYTHON" -m cotir_jax.main --config=nano_release --workdir="$out/run" \
  --config.bench.photos="$photos" --config.bench.test_photos="$test_photos" "$@"
# Training that was asked to stop has saved its state and ended with 0.
[ -e "$out/run/model/model.json" ] || exit 0

if [ ! -e "$out/nano/model.json" ]; then
  PYTHONPATH=. "$PYTHON" tests/benchmarks/nano_floors.py "$out/run/model" "$out/nano" \
    --photos="$photos" --samples="$SAMPLES" --prompts="$PROMPTS"
fi
# Other crops and degradations of the training photos.
"$PYTHON" -m cotir_jax.cli bench build --photos="$photos" --out="$out/validation" \
  --degradations=all --samples=1 --test-samples=6 --size=256 --seed=5
"$PYTHON" -m cotir_jax.cli calibrate --model-dir="$out/nano" \
  --jsonl="$out/validation/test/test.jsonl"
