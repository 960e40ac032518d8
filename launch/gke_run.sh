#!/usr/bin/env bash
# Starts training on GKE; continues the run in WORKDIR where there is one. The JobSet (see
# gke_manifest.sh) is written to MANIFEST, also under --dry-run. Applied again, it changes nothing.
# Further flags go to the program: launch/gke_run.sh --config.train.steps=10
set -euo pipefail
source "$(dirname "$0")/settings.sh"
MANIFEST=${MANIFEST:-${TMPDIR:-/tmp}/$NAME-jobset.yaml}
options "$@"
need BUCKET CONFIG IMAGE TPU TOPOLOGY
"$ROOT/launch/gke_manifest.sh" ${FLAGS[@]+"${FLAGS[@]}"} >"$MANIFEST"
run kubectl apply --filename="$MANIFEST"
