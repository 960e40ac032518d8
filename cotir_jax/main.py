"""Training from a config.

    python -m cotir_jax.main --config=nano --workdir=/tmp/nano
    python -m cotir_jax.main --config=tpu_v5e:klein-4b --mode=compile --topology=v5e:4x4

The part of --config after a colon picks the model. Any field of a config (`configs/default.py`
explains them) can be set: --config.train.steps=10.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from cotir_jax import files

# jax is imported when flags and config are known to be right: their errors are quick.

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Name of a packaged config (nano, tpu_v5e:klein-4b), or path of a config file."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, events, results.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_string("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_string("process_id", None, "Number of this one, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "compile"], "Train, or compile for a TPU topology and report."
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "For compile: a slice, as v4:2x2x4 or v5e:4x4.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "For compile: slices.", lower_bound=1)
_STAGE = flags.DEFINE_integer("stage", None, "For compile: the only stage, from 1; all if absent.")
_OPTIMIZATION_LEVEL = flags.DEFINE_enum(
    "optimization_level",
    None,
    ["O0", "O1", "O2", "O3"],
    "Effort of XLA's compiler; O1 compiles sooner. If absent, the compiler's own choice.",
)
flags.mark_flags_as_required(["config"])
flags.register_multi_flags_validator(
    ["mode", "workdir", "topology"],
    lambda given: given["topology" if given["mode"] == "compile" else "workdir"],
    "training needs --workdir, --mode=compile needs --topology",
)

_CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> None:
    """Trains or compiles; the last line printed is JSON."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected arguments {argv[1:]}; flags are written --name=value")
    logging.getLogger("cotir_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)  # the libraries' own messages
    import jax

    if _OPTIMIZATION_LEVEL.value:
        jax.config.update("jax_optimization_level", _OPTIMIZATION_LEVEL.value)
    if _MODE.value == "compile":
        _compile()
    else:
        _train()


def _compile() -> None:
    """Prints the report of a TPU topology; exits with 1 where the step does not fit."""
    from cotir_jax.compiling import report

    with files.errors_on_one_line(_DEBUG.value):
        result = report.report(_CONFIG.value, _TOPOLOGY.value, _NUM_SLICES.value, _STAGE.value)
    print(json.dumps(result))
    sys.exit(0 if result["fits"] else 1)


def _train() -> None:
    """Runs the job; the first process prints its result."""
    from cotir_jax.commands.train import run_job
    from cotir_jax.parallel import processes

    with processes.leaving_together(), files.errors_on_one_line(_DEBUG.value):
        processes.initialize(
            processes.find_place(
                _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, os.environ
            )
        )
        result = run_job(_CONFIG.value, Path(_WORKDIR.value))
        if processes.is_first():
            print(json.dumps(result))


def find_config(given: str) -> str:
    """Returns the path of a config that may be named without one.

    Args:
      given: value of --config: the name of a packaged config or the path of a file, then the model
        after a colon where it is not the config's own.

    Raises:
      ValueError: there is no such config.
    """
    name, colon, model = given.partition(":")
    path = Path(name)
    if path.suffix != ".py" and path.name == name:
        path = _CONFIGS / f"{name}.py"
    texts = {file: file.read_text() for file in _CONFIGS.glob("*.py")}
    known = sorted(file.stem for file, text in texts.items() if "\ndef get_config(" in text)
    if not path.is_file() or (path.parent == _CONFIGS and path.stem not in known):
        raise ValueError(
            f"--config={given}: no such config; accepted are {', '.join(known)}, or the path of a "
            ".py file"
        )
    return f"{path}{colon}{model}"


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them or the config is one line."""
    argv = list(argv)
    try:
        for index, word in enumerate(argv):
            if match := re.fullmatch(r"--?config=(.*)", word):
                argv[index] = f"--config={find_config(match[1])}"
            elif word in ("-config", "--config") and index + 1 < len(argv):
                argv[index + 1] = find_config(argv[index + 1])
        # The config's flag looks for fields to set in sys.argv by itself.
        sys.argv = argv
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError) as error:
        sys.exit(f"error: {_unknown_field(argv) or files.one_line(error)}")
    except (ValueError, ImportError, SyntaxError, flags.Error) as error:
        # Of an error within a config file ml_collections gives the traceback as text.
        line = files.one_line(error)
        if "Traceback" in line:
            line = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        sys.exit(f"error: {line}")


def _unknown_field(argv: list[str]) -> str | None:
    """Finds a `--config.` flag that names no field, and says which fields there are."""
    flags.FLAGS.unparse_flags()
    sys.argv = [word for word in argv if not word.startswith("--config.")]
    try:
        flags.FLAGS(sys.argv)
    except (AttributeError, KeyError, TypeError):  # the config itself is wrong
        return None
    for match in filter(None, (re.match(r"--config\.([\w.]+)", word) for word in argv)):
        node = _CONFIG.value
        for name in match[1].split("."):
            if not hasattr(node, "keys") or name not in node:
                accepted = sorted(node.keys()) if hasattr(node, "keys") else "no fields"
                return f"config has no field {match[1]!r}: accepted are {accepted}"
            node = node[name]
    return None


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
