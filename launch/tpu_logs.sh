#!/usr/bin/env bash
# Copies every worker's log to gs://BUCKET/logs/NAME/HOST.log.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need PROJECT ZONE BUCKET
# shellcheck disable=SC2016  # the worker expands it
on_workers all 'gcloud storage cp cotir.log gs://'"$BUCKET/logs/$NAME"'/$(hostname).log'
