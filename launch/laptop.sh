#!/usr/bin/env bash
# Installs into a fresh virtual environment and runs nano's job; a run that was stopped continues.
set -euo pipefail
WORKDIR=${WORKDIR:-/tmp/nano}
VENV=${VENV:-$WORKDIR.venv}

cd "$(dirname "$0")/.."
[ -d "$VENV" ] || python3 -m venv "$VENV"
"$VENV/bin/pip" install -q .
"$VENV/bin/python" -m cotir_jax.main --config=nano --workdir="$WORKDIR" "$@"
