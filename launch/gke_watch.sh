#!/usr/bin/env bash
# Shows the job and its pods and follows the logs of the first host of every slice (FOLLOW=0: all
# hosts' last lines instead).
set -euo pipefail
source "$(dirname "$0")/settings.sh"
FOLLOW=${FOLLOW:-1}
options "$@"
selector=jobset.sigs.k8s.io/jobset-name=$NAME
run kubectl get "jobset/$NAME"
run kubectl get pods --selector="$selector" --output=wide
if [ "$FOLLOW" = 1 ]; then
  run kubectl logs --selector="$selector,batch.kubernetes.io/job-completion-index=0" \
    --container=train --prefix --follow --max-log-requests=64
else
  run kubectl logs --selector="$selector" --container=train --prefix --tail=20
fi
