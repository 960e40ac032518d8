"""`--mode=compile`: does a run fit on a TPU topology, and what does a step cost there?

Compiles the training step and the text encoders' programs at full size for devices that need not be
there. Weights are only shapes; nothing is computed.
"""

import logging
import os
import re
import time
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from cotir_jax import files
from cotir_jax.compiling import program
from cotir_jax.compiling.abstract_run import abstract_text
from cotir_jax.compiling.stage import stage_report, text_programs
from cotir_jax.training.config import Run

_log = logging.getLogger(__name__)

# GiB of one device that the compiler lets a program use.
_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
# Chips of which both cores are joined into one device.
_JOINED = ("v4", "v5p")
# libtpu looks for a TPU host's settings, and locks the chips that another process trains on.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def report(
    config: ml_collections.ConfigDict, topology: str, num_slices: int = 1, stage: int | None = None
) -> dict[str, Any]:
    """Compiles a run for a topology and says what it takes.

    Args:
      config: see `configs/default.py`.
      topology: name and shape of a slice, as "v5e:4x4".
      num_slices: slices, joined by the data-centre network.
      stage: number of the only stage to compile, from 1; None for all.

    Returns:
      What is printed as JSON; bytes of one device. `bytes_per_device`, `flops` and
      `collective_bytes` are of the stage that takes the most memory; `hbm_per_device` is what
      programs may use; `text_programs` and `stages` as `compiling.stage` returns them.

    Raises:
      ValueError: for an unknown topology or a config that cannot run on it.
    """
    start = time.monotonic()
    devices = topology_devices(topology, num_slices)
    limit = int(_GIB[topology.split(":")[0]] * program.GIB)
    run = Run.read(config, devices)
    if stage is not None and not 1 <= stage <= len(run.stages):
        raise ValueError(f"--stage={stage}: this run has stages 1 to {len(run.stages)}")
    shape = ", ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items())
    _log.info("%s on %d devices of %s: mesh %s", run.model.name, len(devices), topology, shape)
    text = abstract_text(run.model, run.mesh, run.rules, run.texts_in_step)
    ahead = text_programs({} if run.texts_in_step else text._asdict())
    results = [
        stage_report(run, number, each, text, ahead, limit)
        for number, each in enumerate(run.stages, 1)
        if stage in (None, number)
    ]
    worst = max(results, key=lambda result: result["bytes_per_device"]["total"])
    return {
        "model": run.model.name,
        "topology": topology,
        "num_slices": num_slices,
        "devices": len(devices),
        "mesh": dict(run.mesh.shape),
        "remat": run.model.remat,
        "optimization_level": jax.config.jax_optimization_level,
        "compile_seconds": round(time.monotonic() - start, 1),
        "hbm_per_device": limit,
        **{name: worst[name] for name in ("bytes_per_device", "flops", "collective_bytes")},
        "text_encoders": "in_step" if run.texts_in_step else "ahead",
        "text_programs": ahead,
        "stages": results,
        "fits": all(result["fits"] for result in results),
    }


def topology_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """Describes the devices of a topology, which need not be there.

    Raises:
      ValueError: for an unknown topology, or where libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind not in _GIB or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ValueError(
            f"--topology={topology}: expected one of {', '.join(_GIB)} and a shape, as "
            "v5e:4x4 or v4:2x2x4"
        )
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    name = f"{'v5' if kind == 'v5p' else kind}:{shape}"
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind in _JOINED else {}
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        with program.standard_error():
            return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={topology}: {str(error).splitlines()[0]}") from None
    except (RuntimeError, ImportError, OSError) as error:
        reason = files.one_line(error, 200)
        raise ValueError(
            f"libtpu is needed to compile for TPUs: pip install libtpu ({reason})"
        ) from None
