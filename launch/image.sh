#!/usr/bin/env bash
# Builds and pushes the container image IMAGE: launch/image.sh for TPU, PLATFORM=cuda for GPUs.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
PLATFORM=${PLATFORM:-tpu}
options "$@"
need IMAGE
[ -f "$ROOT/launch/$PLATFORM.Dockerfile" ] || fail "PLATFORM=$PLATFORM: accepted are tpu and cuda" 2
run docker build --file="$ROOT/launch/$PLATFORM.Dockerfile" --build-arg=JAX_VERSION="$JAX_VERSION" \
  --tag="$IMAGE" "$ROOT"
run docker push "$IMAGE"
