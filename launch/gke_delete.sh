#!/usr/bin/env bash
# Deletes the node pools of this run; with CLUSTER_TOO=1 the cluster as well. The bucket stays.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
CLUSTER_TOO=${CLUSTER_TOO:-0}
options "$@"
need PROJECT ZONE
where=(--project="$PROJECT" --location="${ZONE%-*}")
if [ "$CLUSTER_TOO" = 1 ]; then
  run gcloud container clusters delete "$CLUSTER" "${where[@]}" --quiet
  exit 0
fi
for ((slice = 0; slice < NUM_SLICES; slice++)); do
  pool=(node-pools describe "$NAME-$slice" --cluster="$CLUSTER" "${where[@]}")
  if ask gcloud container "${pool[@]}" --format='value(name)' >/dev/null 2>&1; then
    run gcloud container node-pools delete "$NAME-$slice" --cluster="$CLUSTER" "${where[@]}" --quiet
  fi
done
