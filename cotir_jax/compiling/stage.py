"""What the training step of one stage takes: memory, FLOPs, collectives, and advice."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from cotir_jax import files
from cotir_jax.compiling import abstract_run, hlo, program
from cotir_jax.compiling.program import GIB
from cotir_jax.data.batches import Stage
from cotir_jax.models import flops
from cotir_jax.text.encoder import TextEncoder
from cotir_jax.text.encoders import TextEncoders
from cotir_jax.training.config import Run
from cotir_jax.training.loop import step_program
from cotir_jax.training.state import Frozen, TrainState

_log = logging.getLogger(__name__)

# A replicated array from here on is worth a warning.
_LARGE = 64 * 2**20


def text_programs(encoders: Mapping[str, TextEncoder | None]) -> dict[str, Any]:
    """Compiles the text encoders' programs that run ahead of the step on the same devices.

    Args:
      encoders: by name; none where the step encodes its texts itself.

    Returns:
      Bytes of one device: `weights` of all encoders; `temporaries` of the larger program, with its
      result and code; in `programs`, by the encoder's name, the same with `compile_seconds` and
      `warnings`.
    """
    programs: dict[str, dict[str, Any]] = {}
    for name, encoder in encoders.items():
        if encoder is None:
            continue
        weights = abstract_run.sum_bytes(encoder.weights(encoder.mesh))
        compiled = program.compile_program(encoder.lower(), f"text encoder {name}", weights)
        used = compiled.memory
        programs[name] = {
            "weights": weights,
            "temporaries": used.temporaries + used.outputs + used.code,
            "compile_seconds": round(compiled.seconds, 1),
            "warnings": compiled.complaints,
        }
        _log.info(
            "text encoder of %s: weights %.2f GiB per device, temporaries %.2f, compiled in %.0f s",
            name, weights / GIB, used.temporaries / GIB, compiled.seconds,
        )  # fmt: skip
    return {
        "weights": sum(each["weights"] for each in programs.values()),
        "temporaries": max((each["temporaries"] for each in programs.values()), default=0),
        "programs": programs,
    }


def stage_report(
    run: Run, number: int, stage: Stage, text: TextEncoders, ahead: Mapping[str, Any], limit: int
) -> dict[str, Any]:
    """Compiles the step of one stage and says what it takes.

    Args:
      run: that it belongs to.
      number: of the stage, from 1.
      stage: one of the run's.
      text: abstract encoders.
      ahead: from `text_programs`.
      limit: bytes of a device that programs may use.

    Returns:
      Bytes of one device, model FLOPs of all together, as in the JSON line of compile mode. Among
      them `bytes_per_device`: `Memory`'s fields, `next_batch`, `text_encoders` and `total`;
      `xla_flops_per_device`: XLA's own count, None where it is not known; `advice`, only where the
      stage does not fit: which config field to change.
    """
    size = stage.batch_size, stage.patch_size
    name = f"stage {number}: {size[1]} x {size[1]} pixels, batch {size[0]}"
    arguments = abstract_run.abstract_step(run, *size, text if run.texts_in_step else None)
    frozen, state, batch = arguments
    held = abstract_run.sum_bytes(arguments)
    with jax.set_mesh(run.mesh):
        lowered = step_program(run, text, state).lower(*arguments)
    compiled = program.compile_program(lowered, name, held)
    moved: dict[str, tuple[int, int]] = {}
    xla_flops = None
    if compiled.program is not None:
        moved = _collectives(compiled, run.mesh)
        xla_flops = (compiled.program.cost_analysis() or {}).get("flops")
    # The next batch is sent while this one is worked on.
    waiting = abstract_run.sum_bytes(batch)
    encoders = ahead["weights"]
    total = waiting + encoders + max(compiled.memory.total, held + ahead["temporaries"])
    parts = run.step_flops(stage)
    result = {
        "stage": number,
        "patch_size": stage.patch_size,
        "batch_size": stage.batch_size,
        "xla_flops_per_device": xla_flops,
        "compile_seconds": round(compiled.seconds, 1),
        "bytes_per_device": compiled.memory._asdict()
        | {"next_batch": waiting, "text_encoders": encoders, "total": total},
        "frozen_bytes": abstract_run.sum_bytes(frozen[:2]),
        "text_encoder_bytes": abstract_run.sum_bytes(frozen.text) or encoders,
        "trainable_bytes": abstract_run.sum_bytes(state.trainable),
        "optimizer_bytes": abstract_run.sum_bytes(state.opt_state),
        "flops": flops.total(parts),
        "text_flops": flops.encoding(run.model, stage.batch_size),
        "flops_by_part": {part: work.total for part, work in parts.items()},
        "collective_bytes": {kind: size for kind, (_, size) in moved.items()},
        "collective_count": {kind: times for kind, (times, _) in moved.items()},
        "warnings": replicated(frozen, state) + compiled.complaints,
        "fits": compiled.program is not None and total <= limit,
    }
    if not result["fits"]:
        result["advice"] = advice(run, result, limit)
    _log_stage(name, result, limit)
    return result


def _collectives(compiled: program.Compiled, mesh: Mesh) -> dict[str, tuple[int, int]]:
    slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    try:
        return hlo.collectives(compiled.program.as_text(), slices)
    except jax.errors.JaxRuntimeError as error:
        # A libtpu newer than jaxlib may write instructions that it cannot read.
        compiled.complaints.append(f"collectives are not known: {files.one_line(error, 200)}")
        return {}


def _log_stage(name: str, result: Mapping[str, Any], limit: int) -> None:
    sizes = result["bytes_per_device"]
    _log.info(
        "%s: %.2f of %.2f GiB per device (arguments %.2f, temporaries %.2f), %.1f TFLOP, compiled "
        "in %.0f s%s",
        name, sizes["total"] / GIB, limit / GIB, sizes["arguments"] / GIB,
        sizes["temporaries"] / GIB, result["flops"] / 1e12, result["compile_seconds"],
        "" if result["fits"] else ", does NOT fit",
    )  # fmt: skip
    for line in [*result["warnings"], *([result["advice"]] if "advice" in result else [])]:
        _log.warning("%s: %s", name, line)


def replicated(frozen: Frozen, state: TrainState) -> list[str]:
    """Warns of each large array of which every device holds all."""
    warnings = []
    named = {"frozen": frozen, "trainable": state.trainable, "optimizer": state.opt_state}
    for path, leaf in jax.tree_util.tree_leaves_with_path(named):
        size = abstract_run.device_bytes(leaf)
        if size >= _LARGE and leaf.sharding.is_fully_replicated and leaf.sharding.num_devices > 1:
            warnings.append(
                f"{jax.tree_util.keystr(path)} {leaf.shape} ({size / GIB:.2f} GiB) is replicated: "
                "no rule of config.sharding_rules and config.mesh divides it"
            )
    return warnings


def advice(run: Run, result: Mapping[str, Any], limit: int) -> str:
    """Says which config field to change for a stage that does not fit."""
    sizes, batch_size = result["bytes_per_device"], result["batch_size"]
    mesh, accumulate = run.mesh, run.settings.accumulate
    fixed = sizes["total"] - sizes["temporaries"]
    over = f"{sizes['total'] / GIB:.1f} GiB of {limit / GIB:.1f}"
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    each = batch_size // parts
    if fixed > limit:
        if mesh.shape["data"] > 1:
            return f"{over}: weights do not fit; raise config.mesh.fsdp, lower mesh.data"
        return f"{over}: weights and states do not fit: a larger topology is needed"
    if run.model.remat != "full":
        return f"{over}: set config.model.overrides=\"remat='full'\" (now {run.model.remat!r})"
    if each > 1:
        room = max(1, int(each * (limit - fixed) / max(sizes["temporaries"], 1)))
        return (
            f"{over}: lower the batch size of stage {result['stage']} in config.train.stages from "
            f"{batch_size} to about {min(room, each - 1) * parts}, or raise "
            f"config.train.accumulate (now {accumulate})"
        )
    return (
        f"{over} with one sample on a device: raise config.mesh.tensor (now "
        f"{mesh.shape['tensor']}) and lower mesh.fsdp by as much, or take a larger topology"
    )
