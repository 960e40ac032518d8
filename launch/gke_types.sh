# shellcheck shell=bash
# GKE's names for TPU and TOPOLOGY, sourced after settings.sh.

# Sets GKE_ACCELERATOR, MACHINE_TYPE and HOSTS (of one slice; four chips each).
gke_types() {
  case $TPU in
    v4) GKE_ACCELERATOR=tpu-v4-podslice MACHINE_TYPE=ct4p-hightpu-4t ;;
    v5e) GKE_ACCELERATOR=tpu-v5-lite-podslice MACHINE_TYPE=ct5lp-hightpu-4t ;;
    v5p) GKE_ACCELERATOR=tpu-v5p-slice MACHINE_TYPE=ct5p-hightpu-4t ;;
    v6e) GKE_ACCELERATOR=tpu-v6e-slice MACHINE_TYPE=ct6e-standard-4t ;;
    *) fail "TPU=$TPU: accepted are v4, v5e, v5p and v6e" 2 ;;
  esac
  # A slice of v4 and v5p is a block, of v5e and v6e a rectangle.
  local sides='^[0-9]+x[0-9]+$' chips
  case $TPU in v4 | v5p) sides='^[0-9]+x[0-9]+x[0-9]+$' ;; esac
  [[ $TOPOLOGY =~ $sides ]] ||
    fail "TOPOLOGY=$TOPOLOGY: $TPU wants sides such as $([[ $TPU = v[56]e ]] && echo 4x4 || echo 2x2x4)" 2
  chips=$((${TOPOLOGY//x/*}))
  [ $((chips % 4)) = 0 ] && [ "$chips" -gt 0 ] ||
    fail "TOPOLOGY=$TOPOLOGY has $chips chips: hosts have four each" 2
  HOSTS=$((chips / 4))
  export GKE_ACCELERATOR MACHINE_TYPE HOSTS
}
