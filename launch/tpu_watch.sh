#!/usr/bin/env bash
# Shows the state of the TPU, the last lines of every worker's log, and follows the first worker's
# (FOLLOW=0: does not).
set -euo pipefail
source "$(dirname "$0")/settings.sh"
FOLLOW=${FOLLOW:-1}
options "$@"
need PROJECT ZONE

run gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --format='value(state.state)'
on_workers all 'hostname; systemctl is-active cotir; tail -n 5 cotir.log || true'
if [ "$FOLLOW" = 1 ]; then
  run gcloud compute tpus tpu-vm ssh "$(tpu_nodes | head -n 1)" --project="$PROJECT" \
    --zone="$ZONE" --worker=0 --command='tail -n 50 -F cotir.log'
fi
