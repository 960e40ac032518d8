"""`--mode=compile`: does a run fit on a TPU topology, and what does a step cost there?

Compiles the training step and the text encoders' programs at full size for devices that need not be
there. Weights are only shapes; nothing is computed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time

import jax
import ml_collections

from cotir_jax.compiling.abstract_run import abstract_text
from cotir_jax.compiling.stage import StageReport, stage_report
from cotir_jax.compiling.text_programs import TextPrograms, text_programs
from cotir_jax.compiling.topology import memory_limit, topology_devices
from cotir_jax.training.config import Run

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run takes on a topology.

    Attributes:
      model, topology, num_slices: as asked.
      devices: their number.
      mesh: size of each axis.
      remat: of the model.
      optimization_level: of the compiler.
      compile_seconds: of everything.
      hbm_per_device: bytes that programs may use.
      bytes_per_device, flops, collective_bytes: of the stage that takes the most memory.
      text_encoders: "ahead" or "in_step".
      text_programs: those that run ahead.
      stages: in order.
      fits: whether all stages do.
    """

    model: str
    topology: str
    num_slices: int
    devices: int
    mesh: dict[str, int]
    remat: str
    optimization_level: str
    compile_seconds: float
    hbm_per_device: int
    bytes_per_device: dict[str, int]
    flops: float
    collective_bytes: dict[str, int]
    text_encoders: str
    text_programs: TextPrograms
    stages: list[StageReport]
    fits: bool

    def json_line(self) -> str:
        """Writes the report as one line of JSON; without advice where a stage fits."""
        fields = dataclasses.asdict(self)
        for stage in fields["stages"]:
            if stage["advice"] is None:
                del stage["advice"]
        return json.dumps(fields)


def report(
    config: ml_collections.ConfigDict, topology: str, num_slices: int = 1, stage: int | None = None
) -> Report:
    """Compiles a run for a topology and says what it takes.

    Args:
      config: see `configs/default.py`.
      topology: name and shape of a slice, as "v5e:4x4".
      num_slices: slices, joined by the data-centre network.
      stage: number of the only stage to compile, from 1; None for all.

    Raises:
      ValueError: for an unknown topology or a config that cannot run on it.
    """
    start = time.monotonic()
    devices = topology_devices(topology, num_slices)
    limit = memory_limit(topology)
    run = Run.read(config, devices)
    if stage is not None and not 1 <= stage <= len(run.stages):
        raise ValueError(f"--stage={stage}: this run has stages 1 to {len(run.stages)}")
    shape = ", ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items())
    _log.info("%s on %d devices of %s: mesh %s", run.model.name, len(devices), topology, shape)
    text = abstract_text(run.model, run.mesh, run.rules, run.texts_in_step)
    ahead = TextPrograms() if run.texts_in_step else text_programs(text)
    results = [
        stage_report(run, number, each, text, ahead, limit)
        for number, each in enumerate(run.stages, 1)
        if stage in (None, number)
    ]
    worst = max(results, key=lambda result: result.bytes_per_device["total"])
    return Report(
        model=run.model.name,
        topology=topology,
        num_slices=num_slices,
        devices=len(devices),
        mesh=dict(run.mesh.shape),
        remat=run.model.remat,
        optimization_level=jax.config.jax_optimization_level,
        compile_seconds=round(time.monotonic() - start, 1),
        hbm_per_device=limit,
        bytes_per_device=worst.bytes_per_device,
        flops=worst.flops,
        collective_bytes=worst.collective_bytes,
        text_encoders="in_step" if run.texts_in_step else "ahead",
        text_programs=ahead,
        stages=results,
        fits=all(result.fits for result in results),
    )
