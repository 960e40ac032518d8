"""What a run's config means: settings of the step, stages, and the checks before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from jax.sharding import Mesh

from cotir_jax import files
from cotir_jax.checkpoints import model_folder
from cotir_jax.data.batches import Stage
from cotir_jax.models import presets
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import make_mesh
from cotir_jax.training.settings import TrainSettings

# Sections of the config that may change when a run is continued.
FREE_SECTIONS = ("log", "profile", "checkpoint", "evaluate", "mesh", "sharding_rules")
FREE_FIELDS = ("data.workers", "data.threads", "data.text_cache_gb")


def train_settings(config: ml_collections.ConfigDict, num_degradations: int) -> TrainSettings:
    """The step's settings from a config."""
    fields = ("learning_rate", "learning_rate_floor", "optimizer", "weight_decay", "b1", "b2",
              "clip_norm", "timestep_mean", "timestep_std", "full_noise", "guidance", "accumulate",
              "ema_decay", "trainable")  # fmt: skip
    constraints = config.constraints
    return TrainSettings(
        **{name: config.train[name] for name in fields},
        # A run cut short for a trial still ends its warm-up.
        warmup_steps=min(config.train.warmup_steps, config.train.steps - 1),
        total_steps=config.train.steps,
        tolerances=tuple(constraints.tolerances),
        dual_learning_rate=constraints.learning_rate,
        initial_multiplier=constraints.initial,
        multiplier_groups=num_degradations if constraints.per_degradation else 1,
        mask_padding=constraints.mask_padding,
    )


def make_stages(config: ml_collections.ConfigDict) -> list[Stage]:
    """Stages by their last steps, the last one cut or stretched to `train.steps`.

    Raises:
      ValueError: for stages that are not in order.
    """
    stages, first = [], 0
    listed = [tuple(stage) for stage in config.train.stages]
    for last, patch_size, batch_size in listed:
        if last <= first:
            raise ValueError(f"config.train.stages {listed}: last steps must grow")
        end = min(last, config.train.steps)
        if end > first:
            stages.append(Stage(first, end, patch_size, batch_size))
        first = last
    if not stages:
        raise ValueError("config.train.steps and config.train.stages give no step to run")
    if stages[-1].last_step < config.train.steps:
        final = stages.pop()
        stages.append(
            Stage(final.first_step, config.train.steps, final.patch_size, final.batch_size)
        )
    return stages


def check_config(config: ml_collections.ConfigDict) -> None:
    """Finds impossible values before anything is built, downloaded or compiled.

    Raises:
      ValueError: naming the field and what is accepted.
    """
    model_config = presets.preset(config.model.name, config.model.overrides)
    mesh = make_mesh(dict(config.mesh))
    check_step(config, model_config, mesh)
    for stage in make_stages(config):
        sides = (config.data.fresh and config.data.fresh_sizes) or (config.bench.size,)
        made_here = config.data.fresh or not config.data.dir
        if made_here and stage.patch_size > min(sides):
            raise ValueError(
                f"config.train.stages: patch size {stage.patch_size} is larger than "
                f"{min(sides)}, the least of config.bench.size and config.data.fresh_sizes"
            )
    for name in ("recoloured", "drawn"):
        value = config.data[name]
        if not 0 <= value <= 1:
            raise ValueError(f"config.data.{name}={value}: a probability, 0 to 1, is expected")
        if value and not config.data.fresh:
            raise ValueError(
                f"config.data.{name}={value} changes fresh samples alone; set "
                "config.data.fresh=True or leave it at 0"
            )
    if config.constraints.initial < 0:
        raise ValueError(
            f"config.constraints.initial={config.constraints.initial}: multipliers are 0 or more"
        )
    folder = init_folder(config)
    if folder is not None:
        model_folder.load_config(folder)
    if model_config.text_encoder != "minilm" and config.init in ("scratch", "package"):
        raise ValueError(
            f"config.init={config.init!r}: {model_config.name} trains from its published weights; "
            "give the folder that cotir convert wrote"
        )


def check_step(
    config: ml_collections.ConfigDict, model_config: presets.CoTIRConfig, mesh: Mesh
) -> None:
    """Raises `ValueError` for pictures or batches that the model or the mesh cannot take."""
    if config.train.text_encoders not in ("ahead", "in_step"):
        raise ValueError(
            f"config.train.text_encoders={config.train.text_encoders!r}: accepted are 'ahead' and "
            "'in_step'"
        )
    if config.train.optimizer not in ("adamw", "muon"):
        raise ValueError(
            f"config.train.optimizer={config.train.optimizer!r}: accepted are 'adamw' and 'muon'"
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulate
    for stage in make_stages(config):
        if stage.patch_size % model_config.patch:
            raise ValueError(
                f"config.train.stages: patch size {stage.patch_size} is not a multiple of "
                f"{model_config.name}'s {model_config.patch} pixels"
            )
        if stage.batch_size % parts:
            raise ValueError(
                f"config.train.stages: batch size {stage.batch_size} does not divide over data x "
                f"fsdp x accumulate = {parts}"
            )


def init_folder(config: ml_collections.ConfigDict) -> Path | None:
    """The model folder that training starts from, None for none."""
    if config.init == "scratch":
        return None
    if config.init == "package":
        return model_folder.PACKAGED / config.model.name
    return Path(config.init)


def check_workdir(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Remembers the config in the workdir; refuses one that holds another run.

    Raises:
      ValueError: naming the fields that differ.
    """
    path = workdir / "config.json"
    ours = json.loads(config.to_json_best_effort())
    if path.exists():
        theirs = json.loads(path.read_text())
        flat_ours, flat_theirs = _flat(ours), _flat(theirs)
        names = [
            name
            for name in sorted(flat_ours.keys() | flat_theirs.keys())
            if flat_ours.get(name) != flat_theirs.get(name)
            and name.split(".")[0] not in FREE_SECTIONS
            and name not in FREE_FIELDS
        ]
        if names:
            shown = ", ".join(
                f"{n}={flat_theirs.get(n)!r} there, {flat_ours.get(n)!r} here" for n in names[:4]
            )
            raise ValueError(
                f"{workdir} holds a run with another config ({shown}); give another --workdir, or "
                "the same config to continue it"
            )
    if not processes.is_first():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(ours, indent=1, sort_keys=True) + "\n")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
