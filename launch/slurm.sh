#!/usr/bin/env bash
# The batch job that slurm_run.sh submits: one process per task, all of one JAX program.
set -euo pipefail
# SLURM runs a copy of this file from its spool folder: CHECKOUT says where train.sh is.
: "${SLURM_JOB_NODELIST:?error: submit with launch/slurm_run.sh}" "${CHECKOUT:?}" "${PYTHON:?}"

COTIR_COORDINATOR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
COTIR_COORDINATOR=$COTIR_COORDINATOR:$((20000 + SLURM_JOB_ID % 10000)) # two jobs on a node differ
COTIR_NUM_PROCESSES=$SLURM_NTASKS
export COTIR_COORDINATOR COTIR_NUM_PROCESSES
if [ "$SLURM_NTASKS" = "$SLURM_JOB_NUM_NODES" ]; then
  # Under SLURM JAX gives each process one GPU, the one with its number on the node. One process for
  # the node must name them all.
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_PER_NODE##*:} - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
# When one process dies the others cannot go on: end them all; the next submission continues.
# shellcheck disable=SC2016  # each task expands its own
srun --kill-on-bad-exit=1 bash -c 'COTIR_PROCESS_ID=$SLURM_PROCID exec bash "$@"' task \
  "$CHECKOUT/launch/train.sh" gpu "$@"
