#!/usr/bin/env bash
# Installs REVISION of this checkout on all workers and mounts the bucket there. Run it again after
# a change or a new TPU.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need PROJECT ZONE BUCKET

archive=${TMPDIR:-/tmp}/$NAME.tar.gz
run git -C "$ROOT" archive --format=tar.gz --output="$archive" "$REVISION"
run gcloud storage cp "$archive" "gs://$BUCKET/code/$NAME.tar.gz"

settings=$(printf '%s=%q ' BUCKET "$BUCKET" READ_MOUNT "$READ_MOUNT" WRITE_MOUNT "$WRITE_MOUNT" \
  DATA "$DATA" LOCAL_DATA "$LOCAL_DATA" CACHE_MB "$CACHE_MB" JAX_VERSION "$JAX_VERSION")
on_workers all "if systemctl is-active --quiet cotir; then echo error: running, stop it first; exit 1; \
fi; rm -rf cotir && mkdir cotir && gcloud storage cp gs://$BUCKET/code/$NAME.tar.gz - | \
tar xz -C cotir && ${settings}bash cotir/launch/worker_install.sh"
if [ -z "$LOCAL_DATA" ]; then
  # One host writes the index beside the shards, so that the others, and later starts, need not read
  # every tar header over the network. Made through the mount: it holds the times that mounts show.
  run gcloud compute tpus tpu-vm ssh "$(tpu_nodes | head -n 1)" --project="$PROJECT" \
    --zone="$ZONE" --worker=0 --command="cotir-venv/bin/python -c 'import sys; from \
cotir_jax.data.shard_index import ShardIndex; ShardIndex.build(sys.argv[1])' \
$(printf %q "$WRITE_MOUNT/$DATA")"
fi
