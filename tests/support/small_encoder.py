"""Trains with two of MiniLM's six layers and without PyTorch, in half the CPU time.

    PYTHONPATH=.:tests python -m support.small_encoder --config=nano --workdir=W

Everything else is `python -m cotir_jax.main`.
"""

import dataclasses
import importlib.abc
import re
import runpy
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from cotir_jax.models.text_encoders import minilm

LAYERS = 2
# For the processes that tests start.
PYTHONPATH = ":".join(str(Path(__file__).parents[level]) for level in (2, 1))
_read_config = minilm._read_config


def _small_config(file: Path) -> minilm.MiniLMConfig:
    return dataclasses.replace(_read_config(file), num_layers=LAYERS)


def _load_small(file: Path) -> dict[str, np.ndarray]:
    """The tensors of the file without those of later layers."""
    tensors = load_file(file)
    numbers = {name: re.search(r"\.layer\.(\d+)\.", name) for name in tensors}
    return {n: tensors[n] for n, found in numbers.items() if not found or int(found[1]) < LAYERS}


class _WithoutTorch(importlib.abc.MetaPathFinder):
    """Hides PyTorch, which tensorboardX imports where it is installed: 2 s a start."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "torch":
            raise ModuleNotFoundError(name)


if __name__ == "__main__":
    sys.meta_path.insert(0, _WithoutTorch())
    minilm._read_config, minilm.load_file = _small_config, _load_small
    runpy.run_module("cotir_jax.main", run_name="__main__", alter_sys=True)
