#!/usr/bin/env bash
# Starts training on all workers, in the background; continues the run in WORKDIR where there is one.
# Further flags go to the program: launch/tpu_run.sh --config.train.steps=10
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need PROJECT ZONE BUCKET CONFIG

flags=()
while IFS= read -r flag; do flags+=("$flag"); done < <(job_flags)
on_workers all "NUM_SLICES=$NUM_SLICES bash cotir/launch/worker_run.sh$(printf ' %q' "${flags[@]}")"
