#!/usr/bin/env bash
# Runs on each TPU worker, from tpu_run.sh: the program as a service that outlives the ssh session.
set -euo pipefail
if systemctl is-active --quiet cotir; then
  echo "$(hostname): already running"
  exit 0
fi
# SIGTERM to the program alone (it ends its data workers itself) and time to save. A process that
# fails is started again, and continues; not for ever, since a wrong config fails each time. TPU
# memory is mapped as locked memory, of which services get little by default.
sudo systemd-run --quiet --collect --unit=cotir --uid="$(id -u)" --gid="$(id -g)" \
  --working-directory="$HOME/cotir" --setenv=HOME="$HOME" --setenv=NUM_SLICES="$NUM_SLICES" \
  --setenv=PYTHON="$HOME/cotir-venv/bin/python" \
  --property=KillMode=mixed --property=TimeoutStopSec=600 \
  --property=Restart=on-failure --property=RestartSec=30 \
  --property=StartLimitBurst=5 --property=StartLimitIntervalSec=3600 \
  --property=LimitNOFILE=1048576 --property=LimitMEMLOCK=infinity \
  --property=StandardOutput="append:$HOME/cotir.log" \
  --property=StandardError="append:$HOME/cotir.log" \
  bash "$HOME/cotir/launch/train.sh" tpu "$@"
echo "$(hostname): started, log in $HOME/cotir.log"
