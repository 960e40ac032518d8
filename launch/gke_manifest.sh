#!/usr/bin/env bash
# Prints the JobSet: a Job for each slice, a pod for each of its hosts. Further flags go to the
# program: launch/gke_manifest.sh --config.train.steps=10 > job.yaml
set -euo pipefail
source "$(dirname "$0")/settings.sh"
source "$(dirname "$0")/gke_types.sh"
options "$@"
need BUCKET CONFIG IMAGE TPU TOPOLOGY
gke_types
LOCAL_DATA= # shards come through the mount and its cache

yaml_list() {
  local item
  while IFS= read -r item; do
    printf "                - '%s'\n" "${item//\'/\'\'}"
  done
}
mount=implicit-dirs,uid=$RUN_AS,gid=$RUN_AS
spot_selector=
[ "$SPOT" = 0 ] || spot_selector="
                cloud.google.com/gke-spot: \"true\""

# Mounts as in worker_install.sh, where the reasons are. Nothing restarts inside a Job (backoffLimit
# 0): when one host dies, the JobSet starts all again, and they continue from the last checkpoint.
# Exit status 143 keeps an evicted pod, which saved and ended well, from counting as done. GKE's
# webhooks tell each pod its place in slice and set.
cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
  replicatedJobs:
    - name: slice
      replicas: $NUM_SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          backoffLimit: 0
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
                # 0: no limit; the cache of shards lies on the node's disk.
                gke-gcsfuse/cpu-limit: "0"
                gke-gcsfuse/memory-limit: "0"
                gke-gcsfuse/ephemeral-storage-limit: "0"
            spec:
              restartPolicy: Never
              serviceAccountName: $NAME
              # Time to save; spot nodes grant less.
              terminationGracePeriodSeconds: 600
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $GKE_ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY$spot_selector
              securityContext:
                runAsUser: $RUN_AS
                runAsGroup: $RUN_AS
                fsGroup: $RUN_AS
              containers:
                - name: train
                  image: $IMAGE
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                    - containerPort: 8482
                  env:
                    - name: EXIT_ON_TERM
                      value: "143"
                    - name: NUM_SLICES
                      value: "$NUM_SLICES"
                  args:
$(job_flags | yaml_list | sed 's/^/    /')
                  resources:
                    requests:
                      google.com/tpu: 4
                    limits:
                      google.com/tpu: 4
                  volumeMounts:
                    - name: read
                      mountPath: $READ_MOUNT
                      readOnly: true
                    - name: write
                      mountPath: $WRITE_MOUNT
                    - name: shm
                      mountPath: /dev/shm
              volumes:
                - name: read
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    readOnly: true
                    volumeAttributes:
                      bucketName: $BUCKET
                      mountOptions: "$mount,metadata-cache:ttl-secs:-1,\
file-cache:max-size-mb:$CACHE_MB,file-cache:cache-file-for-range-read:true"
                - name: write
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $BUCKET
                      mountOptions: "$mount,metadata-cache:ttl-secs:0,\
metadata-cache:negative-ttl-secs:0,rename-dir-limit=100000"
                # Data workers hand batches over in shared memory; a container has 64 MB of it.
                - name: shm
                  emptyDir:
                    medium: Memory
YAML
