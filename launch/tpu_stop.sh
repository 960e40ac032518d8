#!/usr/bin/env bash
# Stops training on all workers, which save first; tpu_run.sh continues. The TPU stays and costs.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need PROJECT ZONE
on_workers all '! systemctl is-active --quiet cotir || sudo systemctl stop cotir'
