"""Degradations as pure functions of (picture, parameters, random generator).

``APPLY[name](picture, params, rng)`` degrades float32 ``[height, width, 3]`` in [0, 1] and
returns the same; ``SAMPLE[name](severity, side, rng)`` draws parameters for a severity in
[0, 1] and a picture whose shorter side is ``side`` pixels, within ``ranges.RANGES``. Both are
listed in the order in which light meets them: illumination, medium, glass, optics, sensor,
processing, watermark, file. A coarse sensor grid comes before its noise, and haze, which gathers
over distance, before the near streaks and flakes that show.

The clean picture is the target of every one of them, the flare's too (see ``flare.flare``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cotir_jax.bench.degradations import flare, glass, light, processing, sensor, water, weather

APPLY: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    "low-light": light.low_light,
    "shadow": light.shadow,
    "underwater": water.underwater,
    "haze": weather.haze,
    "non-homogeneous-haze": weather.patchy_haze,
    "rain-streak": weather.rain_streak,
    "snow": weather.snow,
    "specular-reflection": glass.reflection,
    "raindrop": glass.raindrop,
    "flare": flare.flare,
    "defocus-blur": sensor.defocus_blur,
    "motion-blur": sensor.motion_blur,
    "over-exposure": sensor.over_exposure,
    "low-resolution": sensor.low_resolution,
    "noise": sensor.noise,
    # With the underscore: the release's own label, which its prompt mixing looks for.
    "lost_color": processing.lost_colour,
    "smartphone-to-dslr": processing.smartphone,
    "watermark": processing.watermark,
    "jpeg-compression": sensor.jpeg_compression,
}

SAMPLE: dict[str, Callable[[float, int, np.random.Generator], Any]] = {
    "low-light": light.sample_low_light,
    "shadow": light.sample_shadow,
    "underwater": water.sample_underwater,
    "haze": weather.sample_haze,
    "non-homogeneous-haze": weather.sample_patchy_haze,
    "rain-streak": weather.sample_rain_streak,
    "snow": weather.sample_snow,
    "specular-reflection": glass.sample_reflection,
    "raindrop": glass.sample_raindrop,
    "flare": flare.sample_flare,
    "defocus-blur": sensor.sample_defocus_blur,
    "motion-blur": sensor.sample_motion_blur,
    "over-exposure": sensor.sample_over_exposure,
    "low-resolution": sensor.sample_low_resolution,
    "noise": sensor.sample_noise,
    "lost_color": processing.sample_lost_colour,
    "smartphone-to-dslr": processing.sample_smartphone,
    "watermark": processing.sample_watermark,
    "jpeg-compression": sensor.sample_jpeg_compression,
}
