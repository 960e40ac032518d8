"""TPU topologies: devices that need not be there, and the memory that programs may use."""

from __future__ import annotations

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from cotir_jax import files
from cotir_jax.compiling import program

GIB = 2**30
# GiB of one device that the compiler lets a program use, and what it wants to know besides the
# topology's name: v4 and v5p join both cores of a chip into one device.
_PLATFORMS: dict[str, tuple[float, dict[str, str]]] = {
    "v4": (30.75, {"chip_config_name": "megacore"}),
    "v5e": (15.75, {}),
    "v5p": (95.74, {"chip_config_name": "megacore"}),
    "v6e": (31.25, {}),
}


def memory_limit(topology: str) -> int:
    """Returns the bytes of one device that a program may use."""
    return int(_PLATFORMS[topology.split(":")[0]][0] * GIB)


def topology_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """Describes the devices of a topology, which need not be there.

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
