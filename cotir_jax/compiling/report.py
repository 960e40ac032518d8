"""`--mode=compile`: does a run fit on a TPU topology, and what does a step cost there?

Compiles the training step of `train.py` and the text encoders' programs at full size for devices
that need not be there. Weights are shapes alone; nothing is computed.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from cotir_jax import files
from cotir_jax.compiling import abstract_run, program
from cotir_jax.data.batches import Stage
from cotir_jax.models import flops
from cotir_jax.text import encoders
from cotir_jax.text.encoders import TextEncoders
from cotir_jax.training.config import Run
from cotir_jax.training.state import Frozen, TrainState
from cotir_jax.training.step import train_step

_log = logging.getLogger(__name__)

GIB = 2**30
# What the compiler lets a program use of one device's memory, and what it wants to know beside the
# topology's name: v4 and v5p join both cores of a chip into one device.
_PLATFORMS: dict[str, tuple[float, dict[str, str]]] = {
    "v4": (30.75, {"chip_config_name": "megacore"}),
    "v5e": (15.75, {}),
    "v5p": (95.74, {"chip_config_name": "megacore"}),
    "v6e": (31.25, {}),
}
# A replicated array from here on is worth a warning.
_LARGE = 64 * 2**20


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
      What goes into the JSON line; `fits` is False where a stage does not.

    Raises:
      ValueError: for an unknown topology or a config that cannot run on it.
    """
    start = time.monotonic()
    devices = topology_devices(topology, num_slices)
    kind = topology.split(":")[0]
    limit = int(_PLATFORMS[kind][0] * GIB)
    run = Run.read(config, devices)
    model_config, mesh, stages = run.model, run.mesh, run.stages
    if stage is not None and not 1 <= stage <= len(stages):
        raise ValueError(f"--stage={stage}: this run has stages 1 to {len(stages)}")
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    _log.info("%s on %d devices of %s: mesh %s", model_config.name, len(devices), topology, shape)
    in_step = run.texts_in_step
    text = abstract_run.abstract_text(model_config, mesh, run.rules, in_step)
    ahead = {"weights": 0, "temporaries": 0, "programs": {}} if in_step else text_programs(text)
    chosen = [(number, each) for number, each in enumerate(stages, 1) if stage in (None, number)]
    results = [stage_report(run, number, each, text, ahead, limit) for number, each in chosen]
    worst = max(results, key=lambda result: result["bytes_per_device"]["total"])
    return {
        "model": model_config.name,
        "topology": topology,
        "num_slices": num_slices,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "remat": model_config.remat,
        "optimization_level": jax.config.jax_optimization_level,
        "compile_seconds": round(time.monotonic() - start, 1),
        "hbm_per_device": limit,
        "bytes_per_device": worst["bytes_per_device"],
        "flops": worst["flops"],
        "collective_bytes": worst["collective_bytes"],
        "text_encoders": "in_step" if in_step else "ahead",
        "text_programs": ahead,
        "stages": results,
        "fits": all(result["fits"] for result in results),
    }


def topology_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """Devices of a topology that need not be there.

    Raises:
      ValueError: for an unknown topology, or where libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind not in _PLATFORMS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ValueError(
            f"--topology={topology}: expected one of {', '.join(_PLATFORMS)} and a shape, as "
            "v5e:4x4 or v4:2x2x4"
        )
    # libtpu looks for a TPU host's settings, and locks the chips that another process trains on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    name = f"{'v5' if kind == 'v5p' else kind}:{shape}"
    options: dict[str, Any] = dict(_PLATFORMS[kind][1])
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        with program.standard_error():
            return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--topology={topology}: {reason}") from None
    except (RuntimeError, ImportError, OSError) as error:
        reason = files.one_line(error, 200)
        raise ValueError(
            f"libtpu is needed to compile for TPUs: pip install libtpu ({reason})"
        ) from None


def stage_report(
    run: Run,
    number: int,
    stage: Stage,
    text: TextEncoders,
    ahead: dict[str, Any],
    limit: int,
) -> dict[str, Any]:
    """Compiles the step of one stage; the report of that stage."""
    batch_size, patch_size = stage.batch_size, stage.patch_size
    name = f"stage {number}: {patch_size} x {patch_size} pixels, batch {batch_size}"
    model_config, mesh, in_step = run.model, run.mesh, run.texts_in_step
    frozen, state, batch = abstract_run.abstract_step(
        run, batch_size, patch_size, text if in_step else None
    )
    placement = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = encoders.in_step(train_step, text) if in_step else train_step
    step = jax.jit(step_fn, donate_argnums=1, out_shardings=(placement, None))
    with jax.set_mesh(mesh):
        lowered = step.lower(frozen, state, batch)
    result: dict[str, Any] = {
        "stage": number, "patch_size": patch_size, "batch_size": batch_size,
    }  # fmt: skip
    arguments = sum(map(abstract_run.device_bytes, jax.tree.leaves((frozen, state, batch))))
    compiled, seconds, complaints = program.compile_program(lowered, name)
    if isinstance(compiled, int):
        used = program.Memory(arguments, 0, compiled, 0)
        moved: dict[str, program.Moved] = {}
        result["xla_flops_per_device"] = None
    else:
        used = program.memory(compiled)
        slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
        try:
            moved = program.collectives(compiled.as_text(), slices)
        except jax.errors.JaxRuntimeError as error:
            # A libtpu newer than jaxlib may write instructions that it cannot read.
            moved = {}
            complaints.append(f"collectives are not known: {str(error).splitlines()[0][:200]}")
        result["xla_flops_per_device"] = (compiled.cost_analysis() or {}).get("flops")
    # The next batch is sent while this one is worked on.
    waiting = sum(map(abstract_run.device_bytes, batch.values()))
    running = used.total + waiting + ahead["weights"]
    encoding = arguments + waiting + ahead["weights"] + ahead["temporaries"]
    total = max(running, encoding)
    parts = flops.training_step(
        model_config, batch_size, patch_size, trainable=run.settings.trainable,
        text_encoders=in_step,
    )  # fmt: skip
    result |= {
        "compile_seconds": round(seconds, 1),
        "bytes_per_device": {
            **used._asdict(), "next_batch": waiting, "text_encoders": ahead["weights"],
            "total": total,
        },
        "frozen_bytes": abstract_run.sum_bytes(frozen[:2]),
        "text_encoder_bytes": abstract_run.sum_bytes(frozen.text) or ahead["weights"],
        "trainable_bytes": abstract_run.sum_bytes(state.trainable),
        "optimizer_bytes": abstract_run.sum_bytes(state.opt_state),
        "flops": flops.total(parts),
        "text_flops": flops.encoding(model_config, batch_size),
        "flops_by_part": {part: work.total for part, work in parts.items()},
        "collective_bytes": {kind: each.bytes for kind, each in moved.items()},
        "collective_count": {kind: each.times for kind, each in moved.items()},
        "warnings": replicated(frozen, state) + complaints,
        "fits": not isinstance(compiled, int) and total <= limit,
    }  # fmt: skip
    _log.info(
        "%s: %.2f of %.2f GiB per device (arguments %.2f, temporaries %.2f), %.1f TFLOP, compiled "
        "in %.0f s%s",
        name, total / GIB, limit / GIB, used.arguments / GIB, used.temporaries / GIB,
        result["flops"] / 1e12, seconds, "" if result["fits"] else ", does NOT fit",
    )  # fmt: skip
    for warning in result["warnings"]:
        _log.warning("%s: %s", name, warning)
    if not result["fits"]:
        result["advice"] = advice(run, result, limit)
        _log.warning("%s: %s", name, result["advice"])
    return result


def text_programs(text: TextEncoders) -> dict[str, Any]:
    """Compiles the text encoders' programs that run ahead of the step on the same devices.

    Returns:
      per device: `weights`, `temporaries` (the larger program's, with its result), and `programs`.
    """
    programs: dict[str, Any] = {}
    for name, encoder in text._asdict().items():
        if encoder is None:
            continue
        compiled, seconds, complaints = program.compile_program(
            encoder.lower(), f"text encoder {name}"
        )
        weights = abstract_run.sum_bytes(encoder.weights(encoder.mesh))
        if isinstance(compiled, int):
            used = program.Memory(weights, 0, compiled, 0)
        else:
            used = program.memory(compiled)
        programs[name] = {
            "weights": weights,
            "temporaries": used.temporaries + used.outputs + used.code,
            "compile_seconds": round(seconds, 1),
            "warnings": complaints,
        }
        _log.info(
            "text encoder of %s: weights %.2f GiB per device, temporaries %.2f, compiled in %.0f s",
            name, weights / GIB, used.temporaries / GIB, seconds,
        )  # fmt: skip
    return {
        "weights": sum(each["weights"] for each in programs.values()),
        "temporaries": max(each["temporaries"] for each in programs.values()),
        "programs": programs,
    }


def replicated(frozen: Frozen, state: TrainState) -> list[str]:
    """A warning for each large array that every device holds whole."""
    warnings = []
    named = {"frozen": frozen, "trainable": state.trainable, "optimizer": state.opt_state}
    for path, leaf in jax.tree_util.tree_leaves_with_path(named):
        size = leaf.dtype.itemsize * math.prod(leaf.shape)
        if (
            size >= _LARGE
            and abstract_run.device_bytes(leaf) == size
            and leaf.sharding.num_devices > 1
        ):
            warnings.append(
                f"{jax.tree_util.keystr(path)} {leaf.shape} ({size / GIB:.2f} GiB) is whole on "
                "every device: no rule of config.sharding_rules and config.mesh divides it"
            )
    return warnings


def advice(run: Run, result: dict[str, Any], limit: int) -> str:
    """Which config field to change for a stage that does not fit."""
    sizes, mesh, accumulate = result["bytes_per_device"], run.mesh, run.settings.accumulate
    fixed = sizes["total"] - sizes["temporaries"]
    over = f"{sizes['total'] / GIB:.1f} GiB of {limit / GIB:.1f}"
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    each = result["batch_size"] // (parts * accumulate)
    if fixed > limit:
        if mesh.shape["data"] > 1:
            return f"{over}: weights alone do not fit; raise config.mesh.fsdp, lower mesh.data"
        return f"{over}: weights and states alone do not fit: a larger topology is needed"
    if run.model.remat != "full":
        return f"{over}: set config.model.overrides=\"remat='full'\" (now {run.model.remat!r})"
    if each > 1:
        room = max(1, int(each * (limit - fixed) / max(sizes["temporaries"], 1)))
        batch = min(room, each - 1) * parts * accumulate
        return (
            f"{over}: lower the batch size of stage {result['stage']} in config.train.stages from "
            f"{result['batch_size']} to about {batch}, or raise config.train.accumulate (now "
            f"{accumulate})"
        )
    return (
        f"{over} with one sample on a device: raise config.mesh.tensor (now "
        f"{mesh.shape['tensor']}) and lower mesh.fsdp by as much, or take a larger topology"
    )
