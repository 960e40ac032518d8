"""`cotir`: the list of commands, help that shows defaults and examples, errors before jax."""

import argparse
import shlex
import subprocess
import sys

import pytest

import cotir_jax
from cotir_jax import cli


def _parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command and action by the words that name it, found through argparse."""
    found = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= _parsers(child)
    return found


PARSERS = _parsers(cli.make_parser())


def test_commands_of_the_contract_are_there():
    commands = "restore explain demo convert export export-program calibrate verify evaluate"
    expected = {f"cotir {name}" for name in ("quickstart", "bench", *commands.split())}
    expected |= {f"cotir bench {name}" for name in ("build", "check", "gallery")} | {"cotir"}
    assert set(PARSERS) == expected


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_has_a_text_and_its_default(name):
    parser = PARSERS[name]
    # Each action's help as it is printed, on one line.
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, f"{name}: {action.dest} has no help"
        text = formatter._expand_help(action)
        if action.option_strings and not action.required:
            assert "default: " in text, f"{name}: {action.dest} does not show its default"
            assert "None" not in text and "==SUPPRESS==" not in text


@pytest.mark.parametrize("name", PARSERS)
def test_examples_in_the_help_parse(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*shlex.split(name)[1:], "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    _, _, examples = said.partition("\nexample")
    lines = [line.strip() for line in examples.splitlines()[1:]]
    assert lines and all(line.startswith("cotir ") for line in lines)
    for line in lines:
        words = shlex.split(line)
        args = cli.make_parser().parse_args(words[1:])
        if name != "cotir":
            assert line.startswith(f"{name} ") and args.run is not None


def test_without_a_command_the_commands_are_listed(capsys):
    cli.main([])
    said = capsys.readouterr().out
    for name in PARSERS:
        if name.count(" ") == 1:
            (line,) = [line for line in said.splitlines() if line.startswith(f"  {name[6:]} ")]
            assert len(line.split()) > 3
    assert said.index("quickstart") < said.index("photos:") < said.index("benchmarks:")


def test_a_group_of_actions_lists_them(capsys):
    cli.main(["bench"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("build", "check", "gallery"))


def test_version_and_module():
    command = [sys.executable, "-m", "cotir_jax", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"cotir {cotir_jax.__version__}\n"
    assert cotir_jax.__version__[0].isdigit()


ERRORS = {
    "unknown command": (["restor"], "invalid choice: 'restor'"),
    "unknown option": (["restore", "in.png", "--promt=x"], "--promt=x"),
    "missing picture": (["restore", "missing.png"], "missing.png: no such file or folder"),
    "nothing to restore": (["restore"], "name a picture or folder"),
    "quality": (["restore", "here.png", "--quality=200"], "--quality=200: expected 1 to 100"),
    "format": (["restore", "here.png", "--format=bmp"], "format .bmp: accepted are .png"),
    "result's format": (["restore", "here.png", "--out=a.gif"], "format .gif: accepted are .png"),
    "prompt file": (["restore", "here.png", "--prompt=no.txt"], "no.txt: no such prompt file"),
    "picture to explain": (["explain", "missing.png"], "missing.png"),
    "listing to explain": (["explain", "--jsonl=no.jsonl"], "no.jsonl: no such file"),
    "listing to calibrate": (["calibrate", "--jsonl=no.jsonl"], "no.jsonl: no such file"),
    "size": (["export-program", "--size=9", "--out=a"], "--size=9: expected HEIGHTxWIDTH"),
    "golden numbers": (["verify", "missing"], "missing: no such folder"),
    "sheet's format": (["quickstart", "--out=a.txt"], "--out=a.txt: end it with one of"),
    "sheet there": (["quickstart", "--out=here.png"], "here.png exists; give another --out"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_arguments_are_one_line(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.png").write_bytes(b"")
    arguments, expected = ERRORS[case]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    assert ended.value.code in (1, 2) and said.out == ""
    assert said.err.count("\n") == 1 and said.err.startswith("error: ") and expected in said.err


def test_help_and_errors_do_not_import_jax(tmp_path):
    """One process goes through them all, and looks at what was imported in the end."""
    (tmp_path / "here.png").write_bytes(b"")
    program = """
import sys
from cotir_jax import cli
for arguments in {runs}:
    try:
        cli.main(arguments)
    except SystemExit:
        pass
loaded = sorted({{"jax", "flax", "tensorflow", "torch", "orbax"}} & set(sys.modules))
print("loaded", loaded)
"""
    runs = [[*name.split()[1:], "--help"] for name in PARSERS]
    runs += [[], ["--version"], *(arguments for arguments, _ in ERRORS.values())]
    command = [sys.executable, "-c", program.format(runs=runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "loaded []"


PUBLIC = {
    "Restorer": "cotir_jax.restoring.restorer",
    "Restored": "cotir_jax.restoring.result",
    "Explanation": "cotir_jax.explaining.explainer",
    "Photo": "cotir_jax.images.photo",
    "read_photo": "cotir_jax.images.photo",
    "write_photo": "cotir_jax.images.photo",
}


def test_public_names_are_lazy():
    """Importing the package imports neither jax nor numpy; each name is what its module holds."""
    import importlib

    program = "import sys, cotir_jax; print({'jax', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for name, module in PUBLIC.items():
        assert name in dir(cotir_jax)
        assert getattr(cotir_jax, name) is getattr(importlib.import_module(module), name)
    for name in ("bench", "checkpoints", "data", "models", "scoring", "training"):
        assert getattr(cotir_jax, name) is importlib.import_module(f"cotir_jax.{name}")
    with pytest.raises(AttributeError, match="restorer"):
        _ = cotir_jax.restorer
