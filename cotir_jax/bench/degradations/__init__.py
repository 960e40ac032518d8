"""Degradations as pure functions of (picture, parameters, random generator).

`APPLY[name](picture, params, rng)` degrades float32 `[height, width, 3]` in [0, 1] and returns the
same; in the formulas, J is the picture and I the result. `SAMPLE[name](severity, side, rng)` draws
parameters for a severity in [0, 1] and a picture whose shorter side is `side` pixels, within
`ranges.RANGES`. Functions are called as the degradation is, with underscores.

The order is that in which light meets them: illumination, medium, glass, optics, sensor,
processing, watermark, file. A coarse sensor grid comes before its noise, and haze, which gathers
over distance, before the near streaks and flakes.

The clean picture is the target of all of them, the flare's too (see `flare.flare`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cotir_jax.bench.degradations import flare, glass, light, processing, sensor, water, weather
from cotir_jax.bench.degradations.ranges import draw_fields

# What draws parameters, or their class where each has a range of its own; what degrades.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., np.ndarray]]] = {
    "low-light": (light.LowLightParams, light.low_light),
    "shadow": (light.sample_shadow, light.shadow),
    "underwater": (water.sample_underwater, water.underwater),
    "haze": (weather.sample_haze, weather.haze),
    "non-homogeneous-haze": (weather.sample_non_homogeneous_haze, weather.non_homogeneous_haze),
    "rain-streak": (weather.RainParams, weather.rain_streak),
    "snow": (weather.SnowParams, weather.snow),
    "specular-reflection": (glass.sample_specular_reflection, glass.specular_reflection),
    "raindrop": (glass.RaindropParams, glass.raindrop),
    "flare": (flare.sample_flare, flare.flare),
    "defocus-blur": (sensor.DefocusBlurParams, sensor.defocus_blur),
    "motion-blur": (sensor.sample_motion_blur, sensor.motion_blur),
    "over-exposure": (sensor.ExposureParams, sensor.over_exposure),
    "low-resolution": (sensor.sample_low_resolution, sensor.low_resolution),
    "noise": (sensor.sample_noise, sensor.noise),
    # With an underscore, as the release labels it: its prompt mixing looks for this label.
    "lost_color": (processing.LostColorParams, processing.lost_color),
    "smartphone-to-dslr": (processing.sample_smartphone_to_dslr, processing.smartphone_to_dslr),
    "watermark": (processing.sample_watermark, processing.watermark),
    "jpeg-compression": (sensor.sample_jpeg_compression, sensor.jpeg_compression),
}
SAMPLE: dict[str, Callable[[float, int, np.random.Generator], Any]] = {
    name: partial(draw_fields, sample, name) if isinstance(sample, type) else sample
    for name, (sample, _) in _FUNCTIONS.items()
}
APPLY: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    name: apply for name, (_, apply) in _FUNCTIONS.items()
}
