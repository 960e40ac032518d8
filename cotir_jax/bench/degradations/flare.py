"""Lens flare, drawn: glow, streaks, ghosts and a ring around a light source in the picture."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cotir_jax.bench.degradations.filters import to_light, to_picture
from cotir_jax.bench.degradations.ranges import draw


@dataclass(frozen=True)
class FlareParams:
    """A light source and what the lens makes of it; lengths in pixels, light in units of white.

    `x` and `y` are shares of width and height, `gain` the light of glow and streaks,
    `glow` the radius at which the glow has fallen to a third, `streak` the length over
    which `streaks` rays fade, `degrees` the lean of the first. `ghosts` blobs of
    brightness `ghost` lie on the line through the picture's centre; `ring` is the radius of
    a faint rainbow, 0 for none. `colour` is the lamp's.
    """

    x: float
    y: float
    gain: float
    glow: float
    streaks: int
    streak: float
    degrees: float
    ghosts: int
    ghost: float
    ring: float
    colour: tuple[float, float, float]


def sample_flare(severity: float, side: int, rng: Generator) -> FlareParams:
    """Draws a flare of `severity` in [0, 1]; sizes in pixels grow with the picture's `side`."""
    warmth = float(rng.uniform(-0.15, 0.35))  # cold to warm
    return FlareParams(
        x=float(rng.uniform(0.08, 0.92)),
        y=float(rng.uniform(0.06, 0.6)),
        gain=draw("flare", "gain", severity, rng),
        glow=draw("flare", "glow", severity, rng, side),
        streaks=(2, 4, 6, 8, 14)[rng.integers(5)],
        streak=draw("flare", "streak", severity, rng, side),
        degrees=float(rng.uniform(0, 90)),
        ghosts=int(rng.integers(1, 9)),
        ghost=draw("flare", "ghost", severity, rng),
        ring=float(rng.uniform(90, 220)) * side / 512 if rng.random() < 0.4 else 0.0,
        colour=(1.0, 1 - 0.35 * abs(warmth), 1 - warmth) if warmth > 0 else (1 + warmth, 1.0, 1.0),
    )


def flare(picture: np.ndarray, params: FlareParams, rng: Generator) -> np.ndarray:
    """Adds stray light: I = clip(J^2.2 + F)^(1/2.2).

    Flare7K also changes gain and noise of the base picture and takes the changed one for its
    target. Here the target stays the clean picture J: exposure and noise are degradations of
    their own, and a chain adds them where they are wanted.

    References:
        Dai et al., Flare7K, NeurIPS 2022 (addition in linear light); Hullin et al.,
        Physically-Based Real-Time Lens Flare Rendering, SIGGRAPH 2011 (ghosts on the line
        through the centre, starburst).
    """
    stray = flare_light(picture.shape[0], picture.shape[1], params, rng)
    return to_picture(to_light(picture) + stray)


def flare_light(height: int, width: int, params: FlareParams, rng: Generator) -> np.ndarray:
    """Computes F, the stray light in units of white, float32 `[height, width, 3]`, 0 or more."""
    centre = np.float32(params.x * (width - 1)), np.float32(params.y * (height - 1))
    x = (np.arange(width, dtype=np.float32) - centre[0])[None, :]
    y = (np.arange(height, dtype=np.float32) - centre[1])[:, None]
    radius = np.sqrt(x * x + y * y)
    side = min(height, width)
    light = _glow(radius, params.glow)
    light += 0.1 * np.exp(radius * np.float32(-1 / (0.5 * side)))  # veil over the full picture
    light += _streaks(x, y, params)
    light += _starburst(x, y, radius, params, rng)
    flare = params.gain * light[..., None] * np.asarray(params.colour, np.float32)
    if params.ring:
        _add_ring(flare, radius, params)
    for _ in range(params.ghosts):
        _add_ghost(flare, params, centre, rng)
    return flare


def _glow(radius: np.ndarray, size: float) -> np.ndarray:
    """Draws a core that clips, and a halo that falls as the cube of the distance."""
    square = (radius * np.float32(1 / size)) ** 2
    return 3 * np.exp(-8 * square) + 1.2 / (1 + square) ** np.float32(1.5)


def _streaks(x: np.ndarray, y: np.ndarray, params: FlareParams) -> np.ndarray:
    """Draws straight rays by diffraction at the aperture's blades: thin, and fading outwards."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for number in range(params.streaks // 2):
        angle = np.deg2rad(params.degrees) + np.pi * number / (params.streaks // 2)
        along = np.abs(np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
        across = np.abs(np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x)
        thick = np.float32(0.055 * params.glow)
        total += np.exp(across / -thick - along * np.float32(1 / params.streak))
    return np.float32(0.9) * total


def _starburst(
    x: np.ndarray, y: np.ndarray, radius: np.ndarray, params: FlareParams, rng: Generator
) -> np.ndarray:
    """Draws fine uneven rays around the source, from dust and scratches on the lens."""
    count = 512
    rays = rng.random(count).astype(np.float32) ** 4
    rays = np.convolve(np.concatenate([rays[-2:], rays, rays[:2]]), np.ones(5) / 5, "valid")
    place = (np.arctan2(y, x) + np.float32(np.pi)) * np.float32(count / (2 * np.pi))
    index = place.astype(np.int32)
    share = place - index
    wrapped = np.concatenate([rays, rays[:2]]).astype(np.float32)
    value = wrapped[index] * (1 - share) + wrapped[index + 1] * share
    return np.float32(0.7) * value * np.exp(radius * np.float32(-1 / (1.6 * params.glow)))


def _add_ring(flare: np.ndarray, radius: np.ndarray, params: FlareParams) -> None:
    """Adds a thin halo whose colours are separate, red outside."""
    width = np.float32(1 / (0.05 * params.ring))
    for channel, size in enumerate((1.0, 0.96, 0.92)):
        offset = (radius - np.float32(params.ring * size)) * width
        flare[..., channel] += np.float32(0.35 * params.ghost) * np.exp(-offset * offset)


def _add_ghost(
    flare: np.ndarray, params: FlareParams, source: tuple[float, float], rng: Generator
) -> None:
    """Adds a blurred aperture, a disk or hexagon, on the line through the centre."""
    height, width = flare.shape[:2]
    side = min(height, width)
    share = rng.uniform(0.3, 2.2)  # 1 is the centre, 2 as far beyond it as the source before it
    column = source[0] + share * (width / 2 - source[0])
    row = source[1] + share * (height / 2 - source[1])
    radius = side * rng.uniform(0.015, 0.08) * (0.6 + 0.5 * abs(share - 1))
    hue = rng.uniform(0.25, 1, 3).astype(np.float32)
    strength = params.ghost * rng.uniform(0.35, 1.0)
    hexagon, turn = rng.random() < 0.5, rng.uniform(0, np.pi / 3)
    top, bottom = max(int(row - radius - 2), 0), min(int(row + radius + 3), height)
    left, right = max(int(column - radius - 2), 0), min(int(column + radius + 3), width)
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    y, x = y - row, x - column
    if hexagon:
        angles = turn + np.arange(6) * np.pi / 3
        distance = np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) / 0.9
    else:
        distance = np.hypot(x, y)
    inside = np.clip((radius - distance) / max(0.12 * radius, 1.0), 0, 1)
    body = inside * (0.55 + 0.45 * (distance / radius) ** 3)  # brighter towards the rim
    flare[top:bottom, left:right] += strength * body[..., None].astype(np.float32) * hue
