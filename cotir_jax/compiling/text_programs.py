"""The text encoders' programs, where they run ahead of the step on the same devices."""

from __future__ import annotations

import dataclasses
import logging

from cotir_jax.compiling import abstract_run, program
from cotir_jax.compiling.topology import GIB
from cotir_jax.text.encoders import TextEncoders

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextProgram:
    """A text encoder's program that runs ahead of the step; bytes of one device.

    Attributes:
      weights: of the encoder.
      temporaries: with its result and code.
      compile_seconds: of this program.
      warnings: of the compiler.
    """

    weights: int
    temporaries: int
    compile_seconds: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class TextPrograms:
    """All text encoders' programs that run ahead of the step; bytes of one device.

    Attributes:
      weights: of all encoders.
      temporaries: of the larger program.
      programs: by the encoder's name.
    """

    weights: int = 0
    temporaries: int = 0
    programs: dict[str, TextProgram] = dataclasses.field(default_factory=dict)


def text_programs(text: TextEncoders) -> TextPrograms:
    """Compiles the text encoders' programs that run ahead of the step on the same devices."""
    programs: dict[str, TextProgram] = {}
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
        temporaries = used.temporaries + used.outputs + used.code
        programs[name] = TextProgram(weights, temporaries, round(seconds, 1), complaints)
        _log.info(
            "text encoder of %s: weights %.2f GiB per device, temporaries %.2f, compiled in %.0f s",
            name, weights / GIB, used.temporaries / GIB, seconds,
        )  # fmt: skip
    return TextPrograms(
        sum(each.weights for each in programs.values()),
        max(each.temporaries for each in programs.values()),
        programs,
    )
