# shellcheck shell=bash
# Variables of all launch scripts, and how they run or print commands. Sourced, not run.
# Export a variable, or edit its default here.

# --- the job ---
NAME=${NAME:-cotir}                     # of the run, the TPU, the job: letters, digits, dashes
CONFIG=${CONFIG:-}                      # such as tpu_v5e:klein-4b, or a file's path
BUCKET=${BUCKET:-}                      # without gs://
REVISION=${REVISION:-HEAD}              # commit of this checkout that runs
# Where bucket folders appear on every host. Two mounts, because what trains wants what never
# changes cached, and what other hosts have just written not cached.
READ_MOUNT=${READ_MOUNT:-/mnt/cotir-read}
WRITE_MOUNT=${WRITE_MOUNT:-/mnt/cotir}
MODEL=${MODEL:-}                        # model folder (`cotir convert`), such as models/klein-4b
DATA=${DATA:-data}                      # CoTIR-Bench folder; both are paths in the bucket
LOCAL_DATA=${LOCAL_DATA:-}              # Cloud TPU: copy the data to this disk instead of mounting
CACHE_MB=${CACHE_MB:-50000}             # of shards kept on each host's disk; 0: no cache
WORKDIR=${WORKDIR:-$WRITE_MOUNT/runs/$NAME}
# The flags of train.sh were checked against this version; an unknown flag ends the program.
JAX_VERSION=${JAX_VERSION:-0.12.0.1}

# --- Google Cloud ---
PROJECT=${PROJECT:-}
ZONE=${ZONE:-}                          # such as us-west4-a
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-}  # Cloud TPU: v4-32, v5litepod-16, v5p-32, v6e-16, ...
RUNTIME_VERSION=${RUNTIME_VERSION:-}    # Cloud TPU: chosen by accelerator type when empty
NUM_SLICES=${NUM_SLICES:-1}
SPOT=${SPOT:-1}                         # 1: cheaper, may be taken away at any time
POLL_SECONDS=${POLL_SECONDS:-30}

# --- GKE ---
CLUSTER=${CLUSTER:-cotir}
PROJECT_NUMBER=${PROJECT_NUMBER:-}      # gcloud projects describe PROJECT --format='value(projectNumber)'
TPU=${TPU:-}                            # v4, v5e, v5p or v6e
TOPOLOGY=${TOPOLOGY:-}                  # of one slice, such as 4x4 or 2x2x4
IMAGE=${IMAGE:-}                        # such as REGION-docker.pkg.dev/PROJECT/cotir/tpu:1
JOBSET_VERSION=${JOBSET_VERSION:-v0.10.1}
RUN_AS=${RUN_AS:-1000}                  # user and group in the container

# --- SLURM ---
NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_GPU=${CPUS_PER_GPU:-8}
PROCESSES=${PROCESSES:-gpu}             # one process per "gpu" or per "node"
TIME_LIMIT=${TIME_LIMIT:-24:00:00}
VENV=${VENV:-}                          # environment with cotir_jax[cuda], on a shared disk

DRY_RUN=${DRY_RUN:-}
# shellcheck disable=SC2034  # for the scripts that source this
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
exec 3>&1                               # commands are printed here, also from inside $(...)

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# Runs a command, or prints it under --dry-run: every command goes through here or `ask`.
run() {
  if [ -n "$DRY_RUN" ]; then show "$@"; else "$@"; fi
}

# The same for a question whose answer is wanted: under --dry-run the answer is empty.
ask() {
  if [ -n "$DRY_RUN" ]; then show "$@"; else "$@"; fi
}

# One line that a shell reads back as the same words.
show() {
  local word line=
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_@%+=:,./-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line $word"
  done
  printf '%s\n' "${line# }" >&3
}

# need NAME...: variables that must be set.
need() {
  local name missing=
  for name in "$@"; do
    [ -n "${!name}" ] || missing="$missing $name"
  done
  [ -z "$missing" ] || fail "not set:$missing; export them or edit launch/settings.sh" 2
}

# options "$@": takes --dry-run and --help; what is left are flags for cotir_jax.main, in FLAGS.
FLAGS=()
options() {
  local flag
  for flag in "$@"; do
    case $flag in
      --dry-run) DRY_RUN=1 ;;
      --help | -h)
        sed -n '2,/^[^#]/{ s/^# \{0,1\}//p; }' "$0"
        echo "Options: --dry-run prints the commands and runs none; --help. Variables: launch/settings.sh"
        exit 0
        ;;
      --config.* | --debug) FLAGS+=("$flag") ;;
      *) fail "unknown option $flag; --help lists what is accepted" 2 ;;
    esac
  done
}

# Flags of cotir_jax.main for this job, one a line.
job_flags() {
  printf '%s\n' "--config=$CONFIG" "--workdir=$WORKDIR" \
    "--config.data.dir=${LOCAL_DATA:-$READ_MOUNT/$DATA}"
  [ -z "$MODEL" ] || printf '%s\n' "--config.init=$READ_MOUNT/$MODEL"
  [ "${#FLAGS[@]}" = 0 ] || printf '%s\n' "${FLAGS[@]}"
}

# --- Cloud TPU ---

# Names of the TPU nodes, one for each slice.
tpu_nodes() {
  local slice
  if [ "$NUM_SLICES" = 1 ]; then echo "$NAME"; return; fi
  for ((slice = 0; slice < NUM_SLICES; slice++)); do echo "$NAME-$slice"; done
}

# on_workers WORKER COMMAND: by ssh on one worker, or "all", of every slice.
on_workers() {
  local node
  for node in $(tpu_nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" --project="$PROJECT" --zone="$ZONE" \
      --worker="$1" --command="$2"
  done
}

# State of the queued resource; empty where there is none.
tpu_state() {
  local answer
  if answer=$(ask gcloud compute tpus queued-resources describe "$NAME" \
    --project="$PROJECT" --zone="$ZONE" --format='value(state.state)' 2>&1); then
    echo "$answer"
  else
    case $answer in
      *NOT_FOUND* | *"not found"*) ;;
      *) fail "$(echo "$answer" | tr '\n' ' ')" ;;
    esac
  fi
}
