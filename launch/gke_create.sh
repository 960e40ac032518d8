#!/usr/bin/env bash
# Makes a GKE cluster with a node pool for each TPU slice, the JobSet controller, and a service
# account that may read and write the bucket. Run it again to make what is missing.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
source "$(dirname "$0")/gke_types.sh"
options "$@"
need PROJECT PROJECT_NUMBER ZONE BUCKET TPU TOPOLOGY
gke_types
region=${ZONE%-*}
where=(--project="$PROJECT" --location="$region")

# absent DESCRIBE...: whether it is not there; under --dry-run it is taken not to be.
absent() {
  ! ask "$@" --format='value(name)' >/dev/null 2>&1 || [ -n "$DRY_RUN" ]
}

if absent gcloud container clusters describe "$CLUSTER" "${where[@]}"; then
  run gcloud container clusters create "$CLUSTER" "${where[@]}" --node-locations="$ZONE" \
    --num-nodes=1 --machine-type=e2-standard-4 --addons=GcsFuseCsiDriver \
    --workload-pool="$PROJECT.svc.id.goog" --quiet
fi
spot=()
[ "$SPOT" = 0 ] || spot=(--spot)
for ((slice = 0; slice < NUM_SLICES; slice++)); do
  if absent gcloud container node-pools describe "$NAME-$slice" --cluster="$CLUSTER" "${where[@]}"
  then
    run gcloud container node-pools create "$NAME-$slice" --cluster="$CLUSTER" "${where[@]}" \
      --node-locations="$ZONE" --machine-type="$MACHINE_TYPE" --tpu-topology="$TOPOLOGY" \
      --num-nodes="$HOSTS" --disk-size=200 --workload-metadata=GKE_METADATA \
      ${spot[@]+"${spot[@]}"} --quiet
  fi
done
run gcloud container clusters get-credentials "$CLUSTER" "${where[@]}"
run kubectl apply --server-side --filename="https://github.com/kubernetes-sigs/jobset/releases/\
download/$JOBSET_VERSION/manifests.yaml"
if ! ask kubectl get serviceaccount "$NAME" >/dev/null 2>&1 || [ -n "$DRY_RUN" ]; then
  run kubectl create serviceaccount "$NAME"
fi
pool=projects/$PROJECT_NUMBER/locations/global/workloadIdentityPools/$PROJECT.svc.id.goog
run gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --role=roles/storage.objectUser \
  --member="principal://iam.googleapis.com/$pool/subject/ns/default/sa/$NAME"
