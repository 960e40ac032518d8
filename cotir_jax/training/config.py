"""A run as its config describes it: read once, and checked before anything is built."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from cotir_jax import files
from cotir_jax.checkpoints import model_folder
from cotir_jax.data.batches import Stage
from cotir_jax.models import flops, presets
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import Rules, make_mesh
from cotir_jax.training.settings import TrainSettings

# Sections and fields of the config that may change when a run is continued.
FREE_SECTIONS = ("log", "profile", "checkpoint", "evaluate", "mesh", "sharding_rules")
FREE_FIELDS = ("data.workers", "data.threads", "data.text_cache_gb")
# Fields of `config.bench` that name folders; empty: none.
_FOLDERS = ("photos", "test_photos", "depth", "rain_masks", "snow_masks")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a config says, with its fields' meanings and defaults in `configs/default.py`.

    Attributes:
      model: the transformer's sizes.
      mesh: devices.
      rules: logical axis of a weight -> mesh axis.
      seed: of weights, data order, noise and timesteps.
      init: the model folder that training starts from, None for none.
      settings: of the training step.
      per_degradation: whether each degradation has multipliers of its own.
      stages: in order; the last one ends with the run.
      texts_in_step: whether the training step encodes its texts, rather than the host ahead of it.
      data, bench, log, profile, checkpoint, evaluate: these sections of the config.
      recorded: the complete config, as `config.json` in the workdir holds it.
    """

    model: presets.CoTIRConfig
    mesh: Mesh
    rules: Rules
    seed: int
    init: Path | None
    settings: TrainSettings
    per_degradation: bool
    stages: tuple[Stage, ...]
    texts_in_step: bool
    data: FrozenConfigDict
    bench: FrozenConfigDict
    log: FrozenConfigDict
    profile: FrozenConfigDict
    checkpoint: FrozenConfigDict
    evaluate: FrozenConfigDict
    recorded: Mapping[str, Any]

    @classmethod
    def read(cls, config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Self:
        """Reads and checks a config.

        Args:
          config: see `configs/default.py`.
          devices: of the mesh, by default all that are here. Devices that are given need not be
            here (compile mode): then the data and the weights to start from are not checked.

        Raises:
          ValueError: naming the field and what is accepted.
        """
        sections = ("data", "bench", "log", "profile", "checkpoint", "evaluate")
        run = cls(
            model=presets.preset(config.model.name, config.model.overrides),
            mesh=make_mesh(dict(config.mesh), devices),
            rules=tuple(config.sharding_rules),
            seed=config.seed,
            init=_init_folder(config),
            settings=TrainSettings.read(config),
            per_degradation=config.constraints.per_degradation,
            stages=tuple(read_stages(config)),
            texts_in_step=config.train.text_encoders == "in_step",
            **{name: FrozenConfigDict(config[name]) for name in sections},
            recorded=json.loads(config.to_json_best_effort()),
        )
        _check_choice("text_encoders", config.train.text_encoders, ("ahead", "in_step"))
        _check_choice("optimizer", run.settings.optimizer, ("adamw", "muon"))
        run._check_stages()
        if run.settings.initial_multiplier < 0:
            raise ValueError(
                f"config.constraints.initial={run.settings.initial_multiplier}: multipliers are 0 "
                "or more"
            )
        if devices is None:
            run._check_data()
            run._check_init(config.init)
        return run

    @property
    def steps(self) -> int:
        """Steps of the complete run."""
        return self.stages[-1].end_step

    @property
    def bench_options(self) -> dict[str, Any]:
        """The arguments of `make_plan` and `build_bench` that `config.bench` gives."""
        options = {name: value for name, value in self.bench.items() if name != "workers"}
        return options | {name: options[name] or None for name in _FOLDERS}

    def groups(self, num_degradations: int) -> int:
        """The number of groups of samples that have multipliers of their own."""
        return num_degradations if self.per_degradation else 1

    def step_flops(self, stage: Stage) -> dict[str, flops.Work]:
        """FLOPs of a step of all devices together, by part."""
        return flops.training_step(
            self.model, stage.batch_size, stage.patch_size,
            trainable=self.settings.trainable, text_encoders=self.texts_in_step,
        )  # fmt: skip

    def _check_stages(self) -> None:
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * self.settings.accumulate
        for stage in self.stages:
            if stage.patch_size % self.model.patch:
                raise ValueError(
                    f"config.train.stages: patch size {stage.patch_size} is not a multiple of "
                    f"{self.model.name}'s {self.model.patch} pixels"
                )
            if stage.batch_size % parts:
                raise ValueError(
                    f"config.train.stages: batch size {stage.batch_size} does not divide over data "
                    f"x fsdp x accumulate = {parts}"
                )

    def _check_data(self) -> None:
        data = self.data
        smallest = min((data.fresh and data.fresh_sizes) or (self.bench.size,))
        largest_patch = max(stage.patch_size for stage in self.stages)
        if (data.fresh or not data.dir) and largest_patch > smallest:
            raise ValueError(
                f"config.train.stages: patch size {largest_patch} is larger than {smallest}, the "
                "least of config.bench.size and config.data.fresh_sizes"
            )
        for name in ("recoloured", "drawn"):
            value = data[name]
            if not 0 <= value <= 1:
                raise ValueError(f"config.data.{name}={value}: a probability, 0 to 1, is expected")
            if value and not data.fresh:
                raise ValueError(
                    f"config.data.{name}={value} changes only fresh samples; set "
                    "config.data.fresh=True or leave it at 0"
                )

    def _check_init(self, init: str) -> None:
        if self.init is not None:
            model_folder.load_config(self.init)
        if self.model.text_encoder != "minilm" and init in ("scratch", "package"):
            raise ValueError(
                f"config.init={init!r}: {self.model.name} trains from its published weights; "
                "give the folder that cotir convert wrote"
            )


def read_stages(config: ConfigDict) -> list[Stage]:
    """Reads the stages, the last one cut or stretched to `train.steps`.

    Raises:
      ValueError: for stages that are not in order.
    """
    stages, first, sample = [], 0, 0
    listed, steps = [tuple(stage) for stage in config.train.stages], config.train.steps
    for end, patch_size, batch_size in listed:
        if end <= first:
            raise ValueError(f"config.train.stages {listed}: last steps must grow")
        if first < steps:
            stages.append(Stage(first, min(end, steps), patch_size, batch_size, sample))
        first, sample = end, sample + (end - first) * batch_size
    if not stages:
        raise ValueError("config.train.steps and config.train.stages give no step to run")
    stages[-1] = dataclasses.replace(stages[-1], end_step=steps)
    return stages


def check_workdir(run: Run, workdir: Path) -> None:
    """Writes the config to the workdir; refuses one that holds another run.

    Raises:
      ValueError: naming the fields that differ.
    """
    path = workdir / "config.json"
    if path.exists():
        recorded = run.recorded, json.loads(path.read_text())
        ours, theirs = (flatten_dict(config, sep=".") for config in recorded)
        names = [
            name
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
            and name.split(".")[0] not in FREE_SECTIONS
            and name not in FREE_FIELDS
        ]
        if names:
            shown = ", ".join(
                f"{name}={theirs.get(name)!r} there, {ours.get(name)!r} here" for name in names[:4]
            )
            raise ValueError(
                f"{workdir} holds a run with another config ({shown}); give another --workdir, or "
                "the same config to continue it"
            )
    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(run.recorded, indent=1, sort_keys=True) + "\n")


def _init_folder(config: ConfigDict) -> Path | None:
    named = {"scratch": None, "package": model_folder.PACKAGED / config.model.name}
    return named[config.init] if config.init in named else Path(config.init)


def _check_choice(name: str, value: str, accepted: tuple[str, str]) -> None:
    if value not in accepted:
        one, other = map(repr, accepted)
        raise ValueError(f"config.train.{name}={value!r}: accepted are {one} and {other}")
