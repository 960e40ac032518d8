#!/usr/bin/env bash
# Submits training on GPU nodes. A second submission waits for the first (both would write to
# WORKDIR) and continues it: submit as often as TIME_LIMIT needs. MODEL, DATA and WORKDIR are full
# paths on a shared disk. Further flags go to the program.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
options "$@"
need CONFIG VENV
for path in "$DATA" "$WORKDIR" "${MODEL:-/}"; do
  [[ $path = /* ]] || fail "$path: DATA, WORKDIR and MODEL must be full paths on a shared disk" 2
done
case $PROCESSES in
  gpu) tasks=$GPUS_PER_NODE ;;
  node) tasks=1 ;;
  *) fail "PROCESSES=$PROCESSES: accepted are gpu and node" 2 ;;
esac
flags=("--config=$CONFIG" "--workdir=$WORKDIR" "--config.data.dir=$DATA")
[ -z "$MODEL" ] || flags+=("--config.init=$MODEL")
# SIGTERM to the program two minutes before the end: it saves and exits. --gpus-per-node and not
# --gpus-per-task: every process sees all GPUs of its node and picks its own by number.
run sbatch --job-name="$NAME" --dependency=singleton --nodes="$NODES" \
  --ntasks="$((NODES * tasks))" --ntasks-per-node="$tasks" --gpus-per-node="$GPUS_PER_NODE" \
  --cpus-per-task="$((CPUS_PER_GPU * GPUS_PER_NODE / tasks))" --time="$TIME_LIMIT" \
  --signal=TERM@120 --requeue --open-mode=append --output="$NAME-%j.log" \
  --export="ALL,PYTHON=$VENV/bin/python,CHECKOUT=$ROOT" \
  "$ROOT/launch/slurm.sh" "${flags[@]}" ${FLAGS[@]+"${FLAGS[@]}"}
