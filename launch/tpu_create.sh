#!/usr/bin/env bash
# Asks for Cloud TPU slices (a queued resource) and waits until they are there. Run it again at any
# time: what exists is kept, and what was taken away (spot) or failed is asked for anew.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need PROJECT ZONE ACCELERATOR_TYPE

if [ -z "$RUNTIME_VERSION" ]; then
  case $ACCELERATOR_TYPE in
    v4-*) RUNTIME_VERSION=tpu-ubuntu2204-base ;;
    v5litepod-*) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
    *) fail "no runtime version known for $ACCELERATOR_TYPE; set RUNTIME_VERSION" 2 ;;
  esac
fi

create() {
  local nodes=(--node-id="$NAME") spot=()
  [ "$NUM_SLICES" = 1 ] || nodes=(--node-count="$NUM_SLICES" --node-prefix="$NAME")
  [ "$SPOT" = 0 ] || spot=(--spot)
  # The scope lets the hosts write to the bucket.
  run gcloud compute tpus queued-resources create "$NAME" --project="$PROJECT" --zone="$ZONE" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "${nodes[@]}" ${spot[@]+"${spot[@]}"}
}

state=$(tpu_state)
case $state in
  "") create ;;
  FAILED | SUSPENDED)
    echo "$NAME is $state: asking anew" >&2
    run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --force --quiet
    create
    ;;
esac
while :; do
  state=$(tpu_state)
  [ -z "$DRY_RUN" ] || break # and so on every POLL_SECONDS until ACTIVE
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDED) fail "$NAME is $state; run this script again to ask anew" ;;
  esac
  echo "$NAME is ${state:-not listed yet}" >&2
  sleep "$POLL_SECONDS"
done
