#!/usr/bin/env bash
# Deletes the TPU, running or not; stop it first with tpu_stop.sh to keep the last steps. The bucket
# stays: gcloud storage rm --recursive gs://BUCKET
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need PROJECT ZONE
if [ -z "$(tpu_state)" ] && [ -z "$DRY_RUN" ]; then
  echo "$NAME does not exist" >&2
  exit 0
fi
run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --force --quiet
