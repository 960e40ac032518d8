#!/usr/bin/env bash
# train.sh tpu|gpu FLAG...: the training program with the compiler's flags for overlapping
# communication with computation; what a TPU worker, a container and a SLURM task all run.
# EXIT_ON_TERM: exit status after SIGTERM instead of the program's own 0.
set -euo pipefail
PYTHON=${PYTHON:-python3}
NUM_SLICES=${NUM_SLICES:-1}
platform=${1:-}
[ $# = 0 ] || shift
cd "$(dirname "$0")/.."

# A flag that libtpu does not know ends the program; these compile nano for v4, v5e, v5p and v6e with
# libtpu 0.0.50 (of jax 0.12.0) and 0.0.52. What they gain in time has not been measured.
case $platform in
  tpu)
    flags=(
      # Starts a collective early and waits for it late, with computation in between.
      --xla_tpu_enable_latency_hiding_scheduler=true
      # Weights sharded over fsdp are gathered for every block, gradients of replicated ones summed:
      # both as start and done, so that the scheduler has something to move.
      --xla_enable_async_all_gather=true
      --xla_enable_async_all_reduce=true
      # Carries the steps of a collective inside the matrix products that run meanwhile. (Its variant
      # for gathers is refused on v4, v5p and v6e from libtpu 0.0.50 on.)
      --xla_tpu_enable_async_collective_fusion=true
      # One gather may stretch over several products: one block's weights take longer than one.
      --xla_tpu_enable_async_collective_fusion_multiple_steps=true
      # The matrix unit computes while the same core drives the transfer.
      --xla_tpu_overlap_compute_collective_tc=true
    )
    if [ "$NUM_SLICES" != 1 ]; then
      flags+=(
        # Between slices gradients cross the slow network: their sums overlap the backward pass,
        # also where they differ in size, as LoRA's and the adapter's do.
        --xla_tpu_enable_data_parallel_all_reduce_opt=true
        --xla_tpu_data_parallel_opt_different_sized_ops=true
      )
    fi
    export LIBTPU_INIT_ARGS="${flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
  gpu)
    flags=(
      # As on TPU: off by default on GPUs.
      --xla_gpu_enable_latency_hiding_scheduler=true
      # NCCL's kernels go first where both wait, so that no transfer starts late.
      --xla_gpu_enable_highest_priority_async_stream=true
      # Blocks are a loop: a gather for the next turn, or a sum of the last one, crosses the loop's
      # edge only when pipelined. If the compiler fails with train.accumulate, drop these first.
      --xla_gpu_enable_pipelined_all_gather=true
      --xla_gpu_enable_pipelined_reduce_scatter=true
      --xla_gpu_enable_pipelined_all_reduce=true
      # Two turns in one, so that the gathered weights of both need no copy between.
      --xla_gpu_enable_while_loop_double_buffering=true
    )
    export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
    # The default leaves a quarter of the memory unused.
    export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
    ;;
  *)
    echo "error: platform '$platform': accepted are tpu and gpu" >&2
    exit 2
    ;;
esac

if [ -z "${EXIT_ON_TERM:-}" ]; then
  exec "$PYTHON" -m cotir_jax.main "$@"
fi
# A Kubernetes job counts exit status 0 as done: after an eviction it would not be started again.
trap 'terminated=1; kill -TERM "$child" || true' TERM
"$PYTHON" -m cotir_jax.main "$@" &
child=$!
stopped=
while :; do # a signal ends `wait` before the program has saved
  terminated=
  status=0
  wait "$child" || status=$?
  [ -n "$terminated" ] || break
  stopped=1
done
if [ -n "$stopped" ] && [ "$status" = 0 ]; then status=$EXIT_ON_TERM; fi
exit "$status"
