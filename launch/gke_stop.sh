#!/usr/bin/env bash
# Stops training, which saves first; gke_run.sh continues. The nodes stay and cost.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
run kubectl delete jobset "$NAME" --ignore-not-found
