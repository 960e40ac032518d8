"""Reading the release's files: safetensors, and PyTorch state dicts without running their code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from cotir_jax.checkpoints.name_tables import Source


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` or `.pt` file into numpy arrays (bfloat16 by ml_dtypes).

    Raises:
      ValueError: for a missing, damaged or unsafe file; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: damaged safetensors file ({error}); fetch it again"
            ) from None
    return _read_pt(path)


def _read_pt(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: reading .pt files needs PyTorch; pip install 'cotir_jax[torch]'"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or unsafe pickles
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a plain PyTorch state dict ({reason})") from None
    return {name: _to_numpy(tensor) for name, tensor in state.items()}


def _to_numpy(tensor) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def fill(model: nnx.Module, sources: list[Source], tensors: Mapping[str, np.ndarray]) -> set[str]:
    """Puts source tensors into the parameters that the table names.

    Args:
      model: module with arrays or abstract parameters, whose shapes are the target.
      sources: rows of a name table.
      tensors: source arrays by name.

    Returns:
      The names of source tensors that were used.

    Raises:
      ValueError: listing every missing tensor and every shape that differs.
    """
    state = nnx.state(model, nnx.Param)
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    used: set[str] = set()
    problems: list[str] = []
    for source in sources:
        missing = [name for name in source.names if name not in tensors]
        problems += [f"missing {name}" for name in missing]
        if missing:
            continue
        used.update(source.names)
        target = flat[source.path]
        parts = [tensors[name].T for name in source.names]  # 1-D tensors are unchanged by .T
        shape = (len(parts), *parts[0].shape) if source.stacked else parts[0].shape
        if shape != target.shape or any(part.shape != parts[0].shape for part in parts):
            problems.append(f"{source.names[0]} gives {source.path} {shape}, not {target.shape}")
            continue
        value = np.stack(parts) if source.stacked else parts[0]
        flat[source.path].set_value(jnp.asarray(value, target.dtype))
    if problems:
        shown = "; ".join(problems[:5]) + (" ..." if len(problems) > 5 else "")
        raise ValueError(f"{len(problems)} tensors do not fit this model: {shown}")
    nnx.update(model, state)
    return used
