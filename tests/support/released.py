"""The golden folders as a release to convert: paths, sizes, and their recorded forward pass."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from cotir_jax.checkpoints import model_folder
from cotir_jax.conversion import published_configs
from cotir_jax.conversion.convert import Paths, convert
from cotir_jax.conversion.torch_files import read_tensors
from cotir_jax.models import presets
from cotir_jax.parallel.sharding import RULES, make_mesh

FAMILIES = ("flux1", "flux2")


def config_of(folder: Path) -> presets.CoTIRConfig:
    sizes = json.loads((folder / "config.json").read_text())
    return published_configs.transformer(sizes)


def paths_of(folder: Path) -> Paths:
    return Paths(
        folder / "base.safetensors", lora=folder / "lora.pt", cot_adapter=folder / "cot_adapter.pt"
    )


def convert_quietly(config, paths: Paths, out: Path, **options) -> list[str]:
    """Converts; returns what was reported."""
    lines: list[str] = []
    convert(config, paths, out, report=lines.append, **options)
    return lines


def load(folder: Path, **axes: int):
    mesh = make_mesh(axes or {"fsdp": 4, "tensor": 2})
    return model_folder.load_model(folder, mesh, RULES)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    flat = model_folder.flat(nnx.state(model, nnx.Param))
    return {name: np.asarray(variable[...]) for name, variable in flat.items()}


def forward_error(model, folder: Path) -> float:
    """Largest relative error of the four outputs that the release recorded."""
    case = read_tensors(folder / "forward.safetensors")
    names = ("img", "img_ids", "txt", "txt_ids", "timesteps", "guidance")
    extra = {"pooled_text": case["vector"]} if model.config.family == "flux1" else {}
    with jax.default_matmul_precision("highest"):
        run = nnx.jit(lambda model, args, extra: model(*args, **extra))
        out = run(model, [case.get(name) for name in names], extra)
    expected = ("velocity", "text_scene", "text_degradation", "text_plan")
    return max(
        float(np.abs(np.asarray(ours) - case[name]).max() / np.abs(case[name]).max())
        for name, ours in zip(expected, out, strict=True)
    )
