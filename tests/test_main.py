"""`python -m cotir_jax.main`: configs by name or path, errors before jax, what is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from cotir_jax import main

ROOT = Path(__file__).parents[1]
NAMES = ("default", "gpu", "nano", "nano_release", "tpu_v4", "tpu_v5e", "tpu_v5p", "tpu_v6e")

OWN = """from cotir_jax.configs import nano

def get_config(model="nano"):
    config = nano.get_config(model)
    config.train.learning_rate = 0.25
    return config
"""
# Prints what the flags say of the config, and whether jax was imported to find out.
SHOW = """
import sys
from absl import flags
from cotir_jax import main
main.parse_flags(["main", "--workdir=W", *sys.argv[1:]])
config = flags.FLAGS.config
print(config.model.name, config.train.steps, config.train.learning_rate, "jax" in sys.modules)
"""


def _show(cwd: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SHOW, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_names_are_those_of_the_files():
    """`tpu` has no config of its own: the others of its kind share it."""
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert set(NAMES) == files - {"__init__", "tpu"}
    for name in NAMES:
        # An installed package has a copy.
        found = Path(main.find_config(name)).read_bytes()
        assert found == (ROOT / "configs" / f"{name}.py").read_bytes()
        assert main.find_config(f"{name}:klein-4b").endswith(f"{name}.py:klein-4b")
        text = (ROOT / "configs" / f"{name}.py").read_text()
        header = text.split('"""')[1]
        assert f"--config={name}" in header or f"launch/{name}.sh" in header


@pytest.mark.parametrize("given", ["nanoo", "tpu", "", "nano.py", "configs/nano", "__init__"])
def test_unknown_names_list_the_accepted_ones(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        main.find_config(given)
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"--config={given}: ")
    assert ", ".join(NAMES) in message


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--config=nano", "--config.train.steps=7"], "nano 7 "),
        (["--config", "tpu_v5e:klein-9b"], "klein-9b 120001 "),
        (["--config=own.py"], "nano "),
        ([f"--config={ROOT / 'configs' / 'gpu.py'}:kontext-12b"], "kontext-12b 120001 "),
    ],
)
def test_configs_are_found_from_any_folder(words, expected, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    done = _show(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected) and done.stdout.endswith("False\n")
    assert ("0.25" in done.stdout) == (words == ["--config=own.py"])


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--config=nano", "--config.train.step=3"], "no field 'train.step': accepted are ["),
        (["--config=nano", "--config.train.steps.x=3"], "no field 'train.steps.x'"),
        (["--config=nano", "--config.train.steps=many"], "--config.train.steps=many"),
        (["--config=nano", "--confg=nano"], "'confg'"),
        (["--config=nanoo"], "accepted are default, gpu, nano, "),
        (["--config=tpu_v4:klein"], "model 'klein': accepted are nano, klein-4b"),
        (["--config=broken.py"], "No module named 'no_such_package'"),
        (["--config=empty.py"], "no attribute 'get_config'"),
        (["--config=nano", "--mode=tain"], "<train|compile>"),
        (["--config=nano", "--mode=compile"], "--mode=compile needs --topology"),
    ],
)
def test_errors_are_one_line(words, expected, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "empty.py").write_text("")
    done = _show(tmp_path, *words)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert expected in done.stderr


def test_what_is_installed(tmp_path):
    """Configs go into the package, not beside it; pictures and logs stay out."""
    pytest.importorskip("setuptools", reason="setuptools builds the package")
    command = [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}", "build_py"]
    done = subprocess.run(
        [*command, f"--build-lib={tmp_path / 'lib'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "lib").iterdir()} == {"cotir_jax"}
    built = {
        path.relative_to(tmp_path / "lib").as_posix(): path
        for path in (tmp_path / "lib").rglob("*")
        if path.is_file()
    }
    for name in NAMES:
        assert f"cotir_jax/configs/{name}.py" in built
    assert {"jpg", "png", "log", "ipynb"}.isdisjoint(name.rpartition(".")[2] for name in built)
    # All that git has of the package, whatever its kind; a link counts as what it leads to.
    listed = subprocess.run(
        ["git", "ls-files", "cotir_jax"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs to the package is not known")
    tracked = {name for name in listed.stdout.split() if not (ROOT / name).is_symlink()}
    missing = {name for name in tracked - set(built) if (ROOT / name).exists()}
    assert not missing
