#!/usr/bin/env bash
# Runs on each TPU worker, from tpu_install.sh: Python environment, package, bucket mounts.
set -euo pipefail

# The images have Python 3.10; uv brings the version that is needed.
command -v "$HOME/.local/bin/uv" >/dev/null || python3 -m pip install -q --user 'uv>=0.8,<1'
[ -d "$HOME/cotir-venv" ] || "$HOME/.local/bin/uv" venv -q --python 3.12 "$HOME/cotir-venv"
"$HOME/.local/bin/uv" pip install -q --python "$HOME/cotir-venv" \
  --reinstall-package cotir_jax "$HOME/cotir[tpu]" "jax==$JAX_VERSION"

if ! command -v gcsfuse >/dev/null; then
  source /etc/os-release
  apt=https://packages.cloud.google.com/apt
  curl -fsSL "$apt/doc/apt-key.gpg" | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] $apt gcsfuse-$VERSION_CODENAME main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -q
  sudo apt-get install -qy gcsfuse
fi

# mount_bucket FOLDER FLAG...
mount_bucket() {
  local folder=$1
  shift
  ! mountpoint -q "$folder" || return 0
  sudo install -d -o "$(id -u)" -g "$(id -g)" "$folder"
  gcsfuse --implicit-dirs "$@" "$BUCKET" "$folder"
}

# Runs: no cached metadata, since other hosts write there too; renaming a checkpoint's folder is
# refused by default where the bucket has no hierarchical namespace.
mount_bucket "$WRITE_MOUNT" --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
  --rename-dir-limit=100000
# Data and weights never change: listed once, and a shard that is touched is fetched whole, because
# samples are read in random order and each shard is read again every epoch.
cache=()
if [ "$CACHE_MB" != 0 ]; then
  sudo install -d -o "$(id -u)" -g "$(id -g)" /var/cache/cotir
  cache=(--cache-dir=/var/cache/cotir --file-cache-max-size-mb="$CACHE_MB"
    --file-cache-cache-file-for-range-read)
fi
mount_bucket "$READ_MOUNT" -o ro --metadata-cache-ttl-secs=-1 ${cache[@]+"${cache[@]}"}

if [ -n "$LOCAL_DATA" ]; then
  sudo install -d -o "$(id -u)" -g "$(id -g)" "$LOCAL_DATA"
  gcloud storage rsync --recursive "gs://$BUCKET/$DATA" "$LOCAL_DATA"
fi
