#!/usr/bin/env bash
# Makes the bucket of a run and copies the data and, where MODEL is set, the model folder into it.
# LOCAL_BENCH and LOCAL_MODEL are folders on this machine. Run it again to copy what has changed.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
LOCAL_BENCH=${LOCAL_BENCH:-}
LOCAL_MODEL=${LOCAL_MODEL:-}
options "$@"
need PROJECT ZONE BUCKET
[ -z "$LOCAL_MODEL" ] || need MODEL

# Hierarchical namespace: renaming a folder is one atomic step, on which a checkpoint that appears
# only when it is complete relies. It cannot be switched on later.
if ! ask gcloud storage buckets describe "gs://$BUCKET" --format='value(name)' >/dev/null 2>&1 ||
  [ -n "$DRY_RUN" ]; then
  run gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="${ZONE%-*}" \
    --uniform-bucket-level-access --enable-hierarchical-namespace
fi
if [ -n "$LOCAL_BENCH" ]; then
  run gcloud storage rsync --recursive "$LOCAL_BENCH" "gs://$BUCKET/$DATA"
fi
if [ -n "$LOCAL_MODEL" ]; then
  run gcloud storage rsync --recursive "$LOCAL_MODEL" "gs://$BUCKET/$MODEL"
fi
