"""What runs on the hosts: train.sh, a TPU worker's scripts, the SLURM job, the containers.

Stubs stand for the programs of a host; XLA itself says whether it knows the flags.
"""

import importlib.util
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


@pytest.mark.parametrize(("name", "platform"), [("tpu", "tpu"), ("cuda", "gpu")])
def test_dockerfiles(name, platform):
    text = (LAUNCH / f"{name}.Dockerfile").read_text()
    (base,) = re.findall(r"^FROM (\S+)", text, re.M)
    assert re.fullmatch(r"\S+:3\.1[12]\.\d+-[a-z-]+", base), "a full version of a tested Python"
    (extra,) = re.findall(r'--editable "\.\[(\w+)\]"', text)
    assert extra == name
    assert re.search(rf'"{extra}": \["jax\[', (ROOT / "setup.py").read_text())
    instructions = re.findall(r"^[A-Z]+", text, re.M)
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert re.search(r"^USER (?!root|0)\w+$", text, re.M)
    assert f'ENTRYPOINT ["bash", "launch/train.sh", "{platform}"]' in text
    for copied in re.findall(r"^COPY (.+)", text, re.M):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source != ".", "the whole checkout may hold weights and runs"
    (version,) = re.findall(r"^ARG JAX_VERSION=(\S+)", text, re.M)
    assert f"JAX_VERSION:-{version}}}" in (LAUNCH / "settings.sh").read_text()


def fake_python(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def train(*args: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", LAUNCH / "train.sh", *args],
        env={"PATH": "/usr/bin:/bin"} | variables, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_train_sets_flags_and_keeps_the_users(tmp_path):
    show = fake_python(tmp_path, 'echo "$@"; echo "$LIBTPU_INIT_ARGS"; echo "$XLA_FLAGS"')
    result = train("tpu", "--config=c", PYTHON=show, LIBTPU_INIT_ARGS="--mine=1", NUM_SLICES="2")
    command, tpu_flags, _ = result.stdout.splitlines()
    assert command == "-m cotir_jax.main --config=c"
    assert "--xla_tpu_enable_data_parallel_all_reduce_opt=true" in tpu_flags.split()
    assert tpu_flags.split()[-1] == "--mine=1", "the last one counts"
    one = train("tpu", PYTHON=show).stdout
    assert "data_parallel" not in one
    gpu_flags = train("gpu", PYTHON=show, XLA_FLAGS="--mine=1").stdout.splitlines()[2]
    assert gpu_flags.split()[-1] == "--mine=1"
    wrong = train("cpu", PYTHON=show)
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: platform 'cpu': accepted are tpu and gpu\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "program_status", "expected"),
    [({}, 0, 0), ({"EXIT_ON_TERM": "143"}, 0, 143), ({"EXIT_ON_TERM": "143"}, 7, 7)],
)
def test_train_hands_sigterm_on_and_waits_for_the_save(
    variables, program_status, expected, tmp_path
):
    saved = tmp_path / "saved"
    program = fake_python(
        tmp_path,
        f"trap 'sleep 0.3; touch {saved}; exit {program_status}' TERM\n"
        f"touch {tmp_path}/ready; while :; do sleep 0.05; done",
    )
    process = subprocess.Popen(
        ["bash", LAUNCH / "train.sh", "tpu"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": program} | variables,
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == expected
    assert saved.exists()


@pytest.mark.parametrize("status", [0, 3])
def test_train_passes_the_programs_status_on(status, tmp_path):
    program = fake_python(tmp_path, f"exit {status}")
    assert train("tpu", PYTHON=program).returncode == status
    assert train("tpu", PYTHON=program, EXIT_ON_TERM="143").returncode == status


@pytest.fixture
def worker(tmp_path) -> dict[str, str]:
    """Stubs of what a TPU worker has; the service and the mounts exist once they were made."""
    record = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$HOME/calls"\n'
    bodies = {
        "sudo": 'if [ "$1" = systemd-run ]; then touch "$HOME/active"; fi',
        "systemctl": 'test -e "$HOME/active"',
        "mountpoint": 'test -e "$HOME/mounted$(basename "$2")"',
        "gcsfuse": 'touch "$HOME/mounted$(basename "${@: -1}")"',
        "python3": 'mkdir -p "$HOME/.local/bin"; ln -sf "$HOME/uv" "$HOME/.local/bin/uv"',
        "uv": 'if [ "$1" = venv ]; then mkdir "${@: -1}"; fi',
        "gcloud": "",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(record + body + "\n")
        (tmp_path / name).chmod(0o755)
    return {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}


def on_worker(script: str, *args: str, env: dict[str, str]) -> list[str]:
    """Runs a worker's script; returns the calls that it made."""
    result = subprocess.run(
        ["bash", LAUNCH / script, *args], env=env, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    path = Path(env["HOME"]) / "calls"
    lines = path.read_text().splitlines()
    path.unlink()
    return lines


def test_worker_installs_and_mounts_once(worker):
    settings = {
        "BUCKET": "bkt", "READ_MOUNT": "/mnt/read", "WRITE_MOUNT": "/mnt/write", "DATA": "data",
        "LOCAL_DATA": "", "CACHE_MB": "500", "JAX_VERSION": "0.12.0.1",
    }  # fmt: skip
    home = worker["HOME"]
    first = on_worker("worker_install.sh", env=worker | settings)
    install = (
        f"uv pip install -q --python {home}/cotir-venv --reinstall-package cotir_jax "
        f"{home}/cotir[tpu] jax==0.12.0.1"
    )
    mounts = [
        "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "
        "--rename-dir-limit=100000 bkt /mnt/write",
        "gcsfuse --implicit-dirs -o ro --metadata-cache-ttl-secs=-1 --cache-dir=/var/cache/cotir "
        "--file-cache-max-size-mb=500 --file-cache-cache-file-for-range-read bkt /mnt/read",
    ]
    assert [call for call in first if call.startswith("gcsfuse")] == mounts
    assert install in first and f"uv venv -q --python 3.12 {home}/cotir-venv" in first
    again = on_worker("worker_install.sh", env=worker | settings)
    assert install in again, "the code may have changed"
    assert not [call for call in again if call.startswith(("gcsfuse", "uv venv", "python3"))]
    local = on_worker("worker_install.sh", env=worker | settings | {"LOCAL_DATA": "/ssd"})
    assert "gcloud storage rsync --recursive gs://bkt/data /ssd" in local


def test_worker_starts_one_service(worker):
    env = worker | {"NUM_SLICES": "2"}
    first = on_worker("worker_run.sh", "--config=c", env=env)
    (start,) = [call for call in first if call.startswith("sudo systemd-run")]
    home = worker["HOME"]
    assert start.endswith(f" bash {home}/cotir/launch/train.sh tpu --config=c")
    words = start.split()
    assert {"--unit=cotir", "--setenv=NUM_SLICES=2", "--property=KillMode=mixed"} <= set(words)
    assert {"--property=LimitMEMLOCK=infinity", f"--working-directory={home}/cotir"} <= set(words)
    assert on_worker("worker_run.sh", "--config=c", env=env) == [
        "systemctl is-active --quiet cotir"
    ]


def test_xla_knows_the_gpu_flags(tmp_path):
    """An unknown flag in XLA_FLAGS ends any program of this jaxlib, on a CPU too."""
    code = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    program = fake_python(tmp_path, f"exec {sys.executable} -c {shlex.quote(code)}")
    for extra, ends_well in (("", True), ("--xla_gpu_no_such_flag=true", False)):
        result = train("gpu", PYTHON=program, JAX_PLATFORMS="cpu", XLA_FLAGS=extra)
        assert (result.returncode == 0) == ends_well, result.stderr


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_libtpu_knows_the_tpu_flags(tmp_path):
    """An unknown flag in LIBTPU_INIT_ARGS ends the program when libtpu is loaded."""
    code = (
        "from jax.experimental import topologies; "
        "topologies.get_topology_desc('v5e:4x4', platform='tpu')"
    )
    program = fake_python(tmp_path, f"exec {sys.executable} -c {shlex.quote(code)}")
    known = {"PYTHON": program, "TPU_SKIP_MDS_QUERY": "1", "NUM_SLICES": "2"}
    known["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # another test process may have loaded it
    for extra, ends_well in (("", True), ("--xla_tpu_no_such_flag=true", False)):
        result = train("tpu", LIBTPU_INIT_ARGS=extra, **known)
        assert (result.returncode == 0) == ends_well, result.stderr


@pytest.mark.parametrize(("per_node", "devices"), [(4, None), (1, "0,1,2,3")])
def test_slurm_job_tells_every_task_its_place(per_node, devices, tmp_path):
    """srun and scontrol are stubs; srun starts the tasks one after the other."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'gpu-a07\\ngpu-b01\\n'\n")
    (tmp_path / "srun").write_text(
        "#!/usr/bin/env bash\n[ $1 = --kill-on-bad-exit=1 ] || exit 9\nshift\n"
        'for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@"; done\n'
    )
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    program = fake_python(
        tmp_path,
        'echo "$COTIR_COORDINATOR $COTIR_NUM_PROCESSES $COTIR_PROCESS_ID '
        '${JAX_LOCAL_DEVICE_IDS:-none} $*"',
    )
    job = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": program, "CHECKOUT": str(ROOT),
        "SLURM_JOB_NODELIST": "gpu-[a07,b01]", "SLURM_JOB_ID": "71234", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": str(2 * per_node), "SLURM_GPUS_PER_NODE": "h100:4",
    }  # fmt: skip
    copy = shutil.copy(LAUNCH / "slurm.sh", tmp_path / "slurm_script")  # as SLURM does
    result = subprocess.run(
        ["bash", copy, "--config=c"], env=job, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"gpu-a07:21234 {2 * per_node} {process} {devices or 'none'} -m cotir_jax.main --config=c"
        for process in range(2 * per_node)
    ]
