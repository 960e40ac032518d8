"""Parameter ranges of every degradation in one table, and how a value is drawn from one.

Sizes in pixels hold for a picture whose shorter side is 512 and grow with it. Severity 0 is the
mildest, 1 the most severe. Sources stand in the docstrings of the functions that use a value;
most ranges were widened at the mild end, since real damage is often slight.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.random import Generator

Params = TypeVar("Params")


@dataclass(frozen=True)
class Range:
    """`base + growth max(severity - onset, 0)`, or `base ratio^severity` where a ratio is set.

    Then a uniform draw from `plus` is added, and the sum multiplied by one from `times`. `draw`
    below scales `pixels` to the picture, and returns nothing below `least`.
    """

    base: float = 0.0
    growth: float = 0.0
    plus: tuple[float, float] | None = None
    times: tuple[float, float] | None = None
    onset: float = 0.0
    ratio: float | None = None
    pixels: bool = False
    least: float = -math.inf

    def draw(self, severity: float, rng: Generator) -> float:
        """Draws a value for `severity` in [0, 1]."""
        if self.ratio is not None:
            value = self.base * self.ratio**severity
        else:
            value = self.base + self.growth * max(severity - self.onset, 0)
        if self.plus is not None:
            value = value + rng.uniform(*self.plus)
        if self.times is not None:
            value = value * rng.uniform(*self.times)
        return float(value)

    def ends(self, severity: float) -> tuple[float, float]:
        """Returns the least and the greatest value for `severity`."""
        middle = replace(self, plus=None, times=None).draw(severity, np.random.default_rng(0))
        plus, times = self.plus or (0.0, 0.0), self.times or (1.0, 1.0)
        values = [(middle + add) * factor for add in plus for factor in times]
        return min(values), max(values)


RANGES: dict[str, dict[str, Range]] = {
    "low-light": {
        "gamma": Range(1.4, 1.3, plus=(-0.1, 0.1)),  # OneRestore: 2 to 3
        "exposure": Range(0.85, -0.25, plus=(-0.05, 0.05)),
    },
    "shadow": {
        "ambient": Range(0.62, -0.52, plus=(-0.04, 0.04)),  # share of light left in the shadow
        "blue": Range(plus=(0.0, 0.25)),  # how much more of the blue is left
        "cover": Range(0.25, 0.2, plus=(-0.08, 0.12)),  # share of the picture
        "softness": Range(plus=(2.0, 16.0), pixels=True, least=0.7),
    },
    "underwater": {
        "thickness": Range(0.35, 1.35, times=(0.9, 1.1)),  # of the farthest water, mean of RGB
        "depth": Range(plus=(0.2, 0.8)),  # below the surface, as a share of the distance
        "backscatter": Range(plus=(0.35, 0.6)),
    },
    "haze": {
        "density": Range(0.45, 1.65, times=(0.92, 1.08)),
        "airlight": Range(plus=(0.72, 0.96)),
        "tint": Range(plus=(-0.02, 0.02)),
        "ramp_power": Range(plus=(0.7, 1.6)),
        "noise_share": Range(plus=(0.05, 0.28)),
    },
    "non-homogeneous-haze": {
        "density": Range(0.4, 1.6, times=(0.92, 1.08)),
        "airlight": Range(plus=(0.74, 0.94)),
        "tint": Range(plus=(-0.03, 0.03)),
        "patchiness": Range(plus=(0.65, 1.0)),
        "patch": Range(plus=(160.0, 320.0), pixels=True),
    },
    "rain-streak": {
        "count": Range(180, 560, times=(0.85, 1.15)),
        "length": Range(0.0, 30, plus=(24, 40), pixels=True),
        "half_width": Range(plus=(0.6, 1.1), pixels=True, least=0.3),
        "degrees": Range(plus=(-30, 30)),
        "opacity": Range(0.28, 0.32, times=(0.9, 1.1)),
        "veil": Range(0.0, 0.18, onset=0.4, times=(0.5, 1.5)),
    },
    "snow": {
        "count": Range(350, 1150, times=(0.85, 1.15)),
        "radius": Range(plus=(1.6, 2.6), pixels=True, least=0.5),
        "degrees": Range(plus=(-40, 40)),
        "smear": Range(plus=(0.5, 3)),
        "opacity": Range(plus=(0.75, 0.95)),
        "mask_opacity": Range(0.45, 0.5),  # of flakes from a mask, whose number is fixed
        "whitening": Range(0.0, 0.3, times=(0.6, 1.0)),
    },
    "specular-reflection": {
        "share": Range(0.14, 0.4, plus=(-0.03, 0.03)),  # of the light, mirrored in the pane
        "blur": Range(plus=(0.8, 4.0), pixels=True),
        "ghost": Range(plus=(3.0, 10.0), pixels=True),  # between front and back of the pane
        "count": Range(7, 17, times=(0.8, 1.2)),  # highlights
        "radius": Range(3.5, 5.0, times=(0.8, 1.2), pixels=True, least=1.5),
        "gain": Range(0.5, 1.3, times=(0.9, 1.1)),
    },
    "raindrop": {
        "count": Range(24, 66, times=(0.85, 1.15)),
        "radius": Range(13.0, 9.0, times=(0.85, 1.15), pixels=True, least=1.5),
        "zoom": Range(plus=(2.0, 4.0)),
        "softness": Range(plus=(2.0, 8.0), pixels=True, least=0.7),
    },
    "flare": {
        "gain": Range(0.3, 0.95, times=(0.9, 1.1)),
        "glow": Range(plus=(22.0, 60.0), pixels=True),
        "streak": Range(90.0, 190.0, times=(0.8, 1.2), pixels=True),
        "ghost": Range(0.06, 0.2, times=(0.7, 1.3)),
    },
    "defocus-blur": {"radius": Range(2.0, 5.5, plus=(0, 0.5), pixels=True, least=0.8)},
    "motion-blur": {
        "length": Range(7, 27, plus=(0, 3), pixels=True, least=2.0),
        "bend": Range(plus=(0.3, 1.2)),
        "degrees": Range(plus=(-90, 90)),
    },
    "over-exposure": {"stops": Range(0.5, 1.9, plus=(0.0, 0.1))},
    "low-resolution": {"factor": Range(1.8, 2.4, plus=(0, 0.3))},
    "noise": {"sigma": Range(10, 37, plus=(0, 3))},  # of 255
    "lost_color": {"kept": Range(0.35, -0.5, least=0.0)},  # share of the colour; 0 from 0.7 on
    "smartphone-to-dslr": {
        "saturation": Range(0.92, -0.3, plus=(-0.05, 0.05)),
        "contrast": Range(0.15, 0.55, plus=(-0.05, 0.05)),
        "smear": Range(0.3, 0.6, plus=(-0.05, 0.05)),
        "halo": Range(0.35, 0.9, plus=(-0.1, 0.1)),
        "chroma": Range(1.5, 5.0, times=(0.8, 1.2)),  # of 255
        "quality": Range(88, -34, plus=(-4, 4)),
    },
    "watermark": {
        "opacity": Range(0.35, 0.35, plus=(-0.05, 0.04)),
        "size": Range(0.06, 0.075, times=(0.85, 1.15)),  # letter height, share of the side
        "degrees": Range(plus=(-40.0, 40.0)),
    },
    "jpeg-compression": {"quality": Range(40, ratio=7 / 40, times=(0.9, 1.1))},
}


def draw(name: str, parameter: str, severity: float, rng: Generator, side: int = 512) -> float:
    """Draws one parameter of the degradation `name` for a severity in [0, 1] and a `side`."""
    given = RANGES[name][parameter]
    value = given.draw(severity, rng)
    return max(value * side / 512 if given.pixels else value, given.least)


def draw_fields(
    kind: type[Params], name: str, severity: float, side: int, rng: Generator, /, **given: Any
) -> Params:
    """Makes a dataclass of parameters: draws its fields that have a range, in their order.

    Args:
        kind: the dataclass; its whole numbers are rounded down.
        name: degradation, a key of `RANGES`.
        severity: in [0, 1].
        side: shorter side of the picture in pixels.
        rng: of the draws.
        given: values of fields that are not drawn.
    """
    drawn = {}
    for each in fields(kind):
        if each.name in RANGES[name] and each.name not in given:
            value = draw(name, each.name, severity, rng, side)
            drawn[each.name] = int(value) if each.type is int else value
    return kind(**drawn, **given)
