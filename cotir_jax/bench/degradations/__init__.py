"""Degradations as pure functions of (picture, parameters, random generator).

``APPLY[name](picture, params, rng)`` degrades float32 ``[height, width, 3]`` in [0, 1] and
returns the same; ``SAMPLE[name](severity, side, rng)`` draws parameters for a severity in
[0, 1] and a picture whose shorter side is ``side`` pixels. Both are listed in the order in
which light meets them: illumination, air, lens, sensor, file. A coarse sensor grid comes before
its noise, and haze, which gathers over distance, before the near streaks and flakes that show.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cotir_jax.bench.degradations import light, sensor, weather

APPLY: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    "low-light": light.low_light,
    "haze": weather.haze,
    "rain-streak": weather.rain_streak,
    "snow": weather.snow,
    "defocus-blur": sensor.defocus_blur,
    "motion-blur": sensor.motion_blur,
    "low-resolution": sensor.low_resolution,
    "noise": sensor.noise,
    "jpeg-compression": sensor.jpeg_compression,
}

SAMPLE: dict[str, Callable[[float, int, np.random.Generator], Any]] = {
    "low-light": light.sample_low_light,
    "haze": weather.sample_haze,
    "rain-streak": weather.sample_rain_streak,
    "snow": weather.sample_snow,
    "defocus-blur": sensor.sample_defocus_blur,
    "motion-blur": sensor.sample_motion_blur,
    "low-resolution": sensor.sample_low_resolution,
    "noise": sensor.sample_noise,
    "jpeg-compression": sensor.sample_jpeg_compression,
}
