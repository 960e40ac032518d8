"""`cotir verify`: reproduces the release's golden numbers on this machine's backend."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from cotir_jax.conversion import published_configs
from cotir_jax.conversion.fill import fill
from cotir_jax.conversion.name_tables import Table
from cotir_jax.conversion.names import adapter, autoencoder, transformer
from cotir_jax.conversion.torch_files import read_tensors
from cotir_jax.models import sampling
from cotir_jax.models.autoencoder import Autoencoder, PatchAutoencoder
from cotir_jax.models.layers import rotary_angles
from cotir_jax.models.transformer import Transformer
from cotir_jax.text.encoders import Embedded
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import TrainState, init_state
from cotir_jax.training.step import update


class Check(NamedTuple):
    """One comparison: its name, largest relative error and the limit it must stay under."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Says whether the error is below the limit."""
        return bool(self.error < self.limit)


def verify(folder: Path) -> Iterator[Check]:
    """Runs every check that a folder laid out like `golden/` has files for.

    A relative error is the largest absolute difference over the largest absolute reference value.
    Limits: 1e-4, and 1e-3 for a whole training trajectory. Matrix products run in full float32.

    Args:
      folder: has any of `flux1/`, `flux2/`, `autoencoder_flux1/`, `autoencoder_flux2/`,
        `schedules.json`, `rope.safetensors`.

    Raises:
      ValueError: when the folder has none of them, or a file is damaged.
    """
    folder = Path(folder)
    parts: dict[str, Callable[[Path], Iterator[Check]]] = {
        "schedules.json": _schedules,
        "rope.safetensors": _rope,
        "autoencoder_flux1": _autoencoder,
        "autoencoder_flux2": _autoencoder,
        "flux1": _transformer,
        "flux2": _transformer,
    }
    found = [name for name in parts if (folder / name).exists()]
    if not found:
        raise ValueError(f"{folder}: nothing to verify; expected one of {sorted(parts)}")
    with jax.default_matmul_precision("highest"):
        for name in found:
            yield from parts[name](folder / name)


def load_release(folder: Path) -> Transformer:
    """Builds the model of a release folder and fills it from its three files.

    Args:
      folder: holds `config.json`, `base.safetensors`, `lora.pt`, `cot_adapter.pt`.

    Raises:
      ValueError: for missing, surplus or misshapen tensors.
    """
    sizes = json.loads((folder / "config.json").read_text())
    config = published_configs.transformer(sizes)
    model = _unfilled(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    tables = {
        "base.safetensors": transformer.native(config),
        "lora.pt": adapter.lora(config),
        "cot_adapter.pt": adapter.cot_adapter(config),
    }
    for name, table in tables.items():
        try:
            fill(model, table, read_tensors(folder / name))
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from None
    return model


def _unfilled(make: Callable[[], Any]) -> Any:
    """A module whose parameters are shapes alone, to be filled: drawing them takes longer."""
    return nnx.merge(*jax.eval_shape(lambda: nnx.split(make())))


def _relative(ours: np.ndarray, reference: np.ndarray) -> float:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        raise ValueError(f"shape {ours.shape} where the reference has {reference.shape}")
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-12))


def _schedules(path: Path) -> Iterator[Check]:
    for family, cases in json.loads(path.read_text()).items():
        error = max(
            _relative(
                sampling.schedule(family, case["num_steps"], case["sequence_length"]),
                case["timesteps"],
            )
            for case in cases
        )
        yield Check(f"schedules/{family}", error, 1e-4)


def _rope(path: Path) -> Iterator[Check]:
    reference = read_tensors(path)
    positions = jnp.asarray(reference.pop("positions"))
    sizes = {"flux1": ((16, 56, 56), 10_000.0), "flux2": ((32, 32, 32, 32), 2000.0)}
    for name, expected in sorted(reference.items()):
        family, dtype = name.split("_")
        axes_dim, theta = sizes[family]
        ids = jnp.broadcast_to(positions[None, :, None], (1, len(positions), len(axes_dim)))
        cos, sin = (x[:, :, 0] for x in rotary_angles(ids, axes_dim, theta, dtype))
        matrix = rearrange(
            jnp.stack([cos, -sin, sin, cos], axis=-1), "b n p (i j) -> b 1 n p i j", i=2
        )
        yield Check(f"rope/{name}", _relative(matrix, expected), 1e-4)


def _autoencoder(folder: Path) -> Iterator[Check]:
    """Encoding and decoding; files hold channels first, and FLUX.1's latents not yet packed."""
    config = published_configs.autoencoder(json.loads((folder / "config.json").read_text()))
    model = _unfilled(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
    fill(model, autoencoder.native(config), read_tensors(folder / "ae.safetensors"))
    case = read_tensors(folder / "roundtrip.safetensors")
    case = {name: rearrange(x, "b c h w -> b h w c") for name, x in case.items()}
    if config.kind == "flux1":
        case["latents"] = rearrange(
            case["latents"], "b (h ph) (w pw) c -> b h w (c ph pw)", ph=2, pw=2
        )
    encode, decode = nnx.jit(Autoencoder.encode), nnx.jit(Autoencoder.decode)
    error = _relative(encode(model, case["image"]), case["latents"])
    yield Check(f"{folder.name}/encode", error, 1e-4)
    error = _relative(decode(model, case["latents"]), case["decoded"])
    yield Check(f"{folder.name}/decode", error, 1e-4)


def _transformer(folder: Path) -> Iterator[Check]:
    model = load_release(folder)
    if (folder / "forward.safetensors").exists():
        yield from _forward(model, read_tensors(folder / "forward.safetensors"))
    if (folder / "sample.safetensors").exists():
        yield _sample(model, read_tensors(folder / "sample.safetensors"))
    if (folder / "train_trajectory.json").exists():
        yield from _trajectory(model, folder)


def _inputs(model: Transformer, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs that only one family has."""
    return {"pooled_text": case["vector"]} if model.config.family == "flux1" else {}


def _forward(model: Transformer, case: dict[str, np.ndarray]) -> Iterator[Check]:
    names = ("img", "img_ids", "txt", "txt_ids", "timesteps", "guidance")
    run = nnx.jit(lambda model, args, extra: model(*args, **extra))
    out = run(model, [case.get(name) for name in names], _inputs(model, case))
    for name, ours in zip(
        ("velocity", "text_scene", "text_degradation", "text_plan"), out, strict=True
    ):
        error = _relative(ours, case[name])
        yield Check(f"{model.config.family}/forward/{name}", error, 1e-4)


def _sample(model: Transformer, case: dict[str, np.ndarray], num_steps: int = 4) -> Check:
    count, family = case["noise"].shape[1], model.config.family
    ids = np.concatenate([case["img_ids"], case["condition_ids"]], axis=1)

    @nnx.jit
    def run(model: Transformer, noise: jax.Array) -> jax.Array:
        def velocity(latents: jax.Array, timestep: jax.Array) -> jax.Array:
            tokens = jnp.concatenate([latents, case["condition"]], axis=1)
            guidance = jnp.full_like(timestep, 4.0) if model.config.guidance_embed else None
            return model(
                tokens, ids, case["txt"], case["txt_ids"], timestep, guidance,
                output_rows=count, with_thoughts=False, **_inputs(model, case),
            ).velocity  # fmt: skip

        return sampling.euler(velocity, noise, sampling.schedule(family, num_steps, count))

    return Check(f"{family}/sample", _relative(run(model, case["noise"]), case["latents"]), 1e-4)


def _trajectory(model: Transformer, folder: Path) -> Iterator[Check]:
    """Repeats the recorded training steps through `train.update`."""
    record = json.loads((folder / "train_trajectory.json").read_text())
    case = read_tensors(folder / "train_inputs.safetensors")
    expected = record["steps"]
    frozen, state = init_state(model, PatchAutoencoder(16), _settings(record), seed=0)
    step, family = jax.jit(update), model.config.family
    ours: dict[str, list[float]] = {name: [] for name in expected}
    for index in range(len(expected["loss"])):
        state, metrics = step(frozen, state, _step_inputs(case, index))
        for name, key in _METRICS.items():
            ours[name].append(float(metrics[key]))
    for name, values in ours.items():
        yield Check(f"{family}/train/{name}", _relative(np.array(values), expected[name]), 1e-3)
    yield Check(f"{family}/train/final_weights", _final_error(model, state, folder), 1e-3)


_METRICS = {"loss": "loss", "img_loss": "velocity_loss", "grad_norm": "gradient_norm",
            "learning_rate": "learning_rate"} | {
    f"{theirs}_{name}": f"{ours}_{name}"
    for theirs, ours in (("txt_loss", "constraint_loss"), ("multiplier", "multiplier"))
    for name in ("scene", "degradation", "plan")
}  # fmt: skip


def _settings(record: dict) -> TrainSettings:
    optimizer, dual = record["optimizer"], record["multiplier_optimizer"]
    # Written as a sentence there: "linear warmup from 0 over 2 steps, cosine to 0 at step 8; ...".
    found = re.search(r"over (\d+) steps.*? at step (\d+)", optimizer["schedule"])
    if found is None:
        raise ValueError(f"train_trajectory.json: unknown schedule {optimizer['schedule']!r}")
    warmup, total = found.groups()
    return TrainSettings(
        learning_rate=optimizer["peak_learning_rate"],
        warmup_steps=int(warmup),
        total_steps=int(total),
        learning_rate_floor=optimizer["learning_rate_floor"],
        weight_decay=optimizer["weight_decay"],
        b1=optimizer["b1"],
        b2=optimizer["b2"],
        clip_norm=optimizer["max_grad_norm"],
        tolerances=tuple(record["tolerances"][k] for k in ("scene", "degradation", "plan")),
        dual_learning_rate=dual["learning_rate"],
        optimizer="adamw",
        initial_multiplier=0.0,
        mask_padding=False,
        timestep_mean=0.0,
        timestep_std=1.0,
        full_noise=0.0,
        guidance=4.0,
        accumulate=1,
        ema_decay=0.0,
        trainable="lora_and_adapter",
    )


def _step_inputs(case: dict[str, np.ndarray], index: int) -> dict[str, Any]:
    """One step's inputs; tokens become the grid that their recorded position ids describe."""
    height = int(case["img_ids"][0, :, 1].max()) + 1

    def grid(x: np.ndarray) -> np.ndarray:
        return rearrange(x, "b (h w) c -> b h w c", h=height)

    batch = case["timestep_logits"].shape[1]
    return {
        "latents": grid(case["target_latents"][index]),
        "condition": grid(case["condition"]),
        "noise": grid(case["noise"][index]),
        "timestep": jax.nn.sigmoid(jnp.asarray(case["timestep_logits"][index])),
        "prompt": Embedded(case["txt"], None),
        "scene": Embedded(case["text_scene"], None),
        "degradation": Embedded(case["text_degradation"], None),
        "plan": Embedded(case["text_plan"], None),
        "group": np.zeros((batch,), np.int32),
        "pooled": case["vector"],
    }


def _final_error(model: Transformer, state: TrainState, folder: Path) -> float:
    """Largest relative error over all trained tensors, each by its own largest value."""
    final = read_tensors(folder / "train_final.safetensors")
    trained = dict(_flat(state.trainable))
    reference = nnx.clone(model)
    rows = [*adapter.lora(model.config).rows, *adapter.cot_adapter(model.config).rows]
    fill(reference, Table(rows), final)
    expected = dict(_flat(nnx.state(reference, nnx.Param)))
    return max(_relative(trained[path], expected[path]) for path in trained)


def _flat(state: nnx.State) -> list[tuple]:
    return [(path, variable[...]) for path, variable in nnx.to_flat_state(state)]
