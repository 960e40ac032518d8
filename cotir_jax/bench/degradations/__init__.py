"""Degradations as pure functions of (picture, parameters, random generator).

`APPLY[name](picture, params, rng)` degrades float32 `[height, width, 3]` in [0, 1] and returns the
same; `SAMPLE[name](severity, side, rng)` draws parameters for a severity in [0, 1] and a picture
whose shorter side is `side` pixels, within `ranges.RANGES`. The function of `low-light` is
`low_light`, next to `sample_low_light`, and so on.

The order is that in which light meets them: illumination, medium, glass, optics, sensor,
processing, watermark, file. A coarse sensor grid comes before its noise, and haze, which gathers
over distance, before the near streaks and flakes.

The clean picture is the target of all of them, the flare's too (see `flare.flare`).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from cotir_jax.bench.degradations import flare, glass, light, processing, sensor, water, weather

_MODULES: dict[str, ModuleType] = {
    "low-light": light,
    "shadow": light,
    "underwater": water,
    "haze": weather,
    "non-homogeneous-haze": weather,
    "rain-streak": weather,
    "snow": weather,
    "specular-reflection": glass,
    "raindrop": glass,
    "flare": flare,
    "defocus-blur": sensor,
    "motion-blur": sensor,
    "over-exposure": sensor,
    "low-resolution": sensor,
    "noise": sensor,
    # With an underscore, as the release labels it: its prompt mixing looks for this label.
    "lost_color": processing,
    "smartphone-to-dslr": processing,
    "watermark": processing,
    "jpeg-compression": sensor,
}


def _functions(template: str) -> dict[str, Callable[..., Any]]:
    return {
        name: getattr(module, template.format(name.replace("-", "_")))
        for name, module in _MODULES.items()
    }


APPLY: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = _functions("{}")
SAMPLE: dict[str, Callable[[float, int, np.random.Generator], Any]] = _functions("sample_{}")
