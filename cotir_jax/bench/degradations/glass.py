"""Degradations of glass and shiny surfaces: raindrops on a pane, reflections, highlights."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from cotir_jax.bench.degradations.filters import luma, resize, to_light, to_picture
from cotir_jax.bench.degradations.ranges import draw_fields


@dataclass(frozen=True)
class RaindropParams:
    """How many drops cling to the pane, their middling radius and edge softness in pixels.

    `zoom` is how many radii around a drop's centre it shows, upside down.
    """

    count: int
    radius: float
    zoom: float
    softness: float


@dataclass(frozen=True)
class ReflectionParams:
    """Highlights of shiny surfaces, or another scene mirrored in a pane.

    For `highlights`: `count`, `radius` in pixels, and `gain`, their light above white. For
    `window`: `share`, the share 1 - alpha of reflected light, its `blur` and the
    `ghost` between front and back of the pane in pixels, and the `second` photo, uint8
    `[any, any, 3]`; None mirrors the picture itself.
    """

    kind: Literal["highlights", "window"]
    share: float = 0.0
    blur: float = 0.0
    ghost: float = 0.0
    count: int = 0
    radius: float = 0.0
    gain: float = 0.0
    second: np.ndarray | None = field(default=None, repr=False, compare=False)


def raindrop(picture: np.ndarray, params: RaindropParams, rng: Generator) -> np.ndarray:
    """Puts drops on the pane: I = (1 - a) J + a s J(w(x)) in linear light.

    Each drop is a small wide-angle lens: w turns the scene around its centre upside down and
    squeezes it towards the rim, where the shade s darkens it. Where drops meet, the nearer
    centre wins. The camera looks past the pane, so drops have soft edges and no fine detail.

    References:
        Qian et al., Attentive GAN for Raindrop Removal, CVPR 2018 (the composition); the lens is
        simplified from Roser, Kurz and Geiger, Realistic Modeling of Water Droplets, ACCVW 2010.
    """
    height, width = picture.shape[:2]
    opacity = np.zeros((height, width), np.float32)
    source = np.zeros((2, height, width), np.float32)
    shade = np.ones((height, width), np.float32)
    for _ in range(params.count):
        _add_drop(opacity, source, shade, params, rng)
    rows, columns = np.nonzero(opacity)
    light = to_light(picture)
    small = [max(round(side / 2), 1) for side in (height, width)]
    # A drop squeezes the scene and is out of focus: half the resolution, blurred, is enough.
    half = [resize(light[..., c], small[0], small[1], Image.Resampling.BOX) for c in range(3)]
    half = [ndimage.gaussian_filter(channel, 0.25 * params.softness) for channel in half]
    places = source[:, rows, columns] * np.array([[small[0] / height], [small[1] / width]])
    seen = np.stack(
        [ndimage.map_coordinates(half[c], places, order=1, mode="mirror") for c in range(3)], axis=1
    )
    alpha = opacity[rows, columns, None]
    seen = seen * shade[rows, columns, None]
    light[rows, columns] += alpha * (seen - light[rows, columns])
    return to_picture(light)


def _add_drop(
    opacity: np.ndarray,
    source: np.ndarray,
    shade: np.ndarray,
    params: RaindropParams,
    rng: Generator,
) -> None:
    """Draws one drop into `opacity` and `shade`, and what it shows where into `source`."""
    height, width = opacity.shape
    radius = params.radius * float(np.exp(rng.normal(-0.25, 0.5)))
    centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
    stretch = rng.uniform(1.0, 1.35)  # gravity
    phases = rng.uniform(0, 2 * np.pi, 2)
    reach = int(np.ceil(1.3 * stretch * radius + params.softness))
    top, left = max(int(centre_y) - reach, 0), max(int(centre_x) - reach, 0)
    area = np.s_[top : int(centre_y) + reach + 1, left : int(centre_x) + reach + 1]
    y, x = np.mgrid[area].astype(np.float32)
    y, x = y[: height - top, : width - left], x[: height - top, : width - left]
    across, down = (x - centre_x) / radius, (y - centre_y) / (radius * stretch)
    angle = np.arctan2(down, across)
    outline = 1 + 0.1 * np.cos(2 * angle + phases[0]) + 0.07 * np.cos(3 * angle + phases[1])
    outline += 0.08 * down  # wider at the bottom
    distance = np.hypot(across, down) / np.maximum(outline, 0.3)
    alpha = np.clip((1 - distance) * radius / params.softness + 0.5, 0, 1)
    alpha = alpha * alpha * (3 - 2 * alpha)
    wins = alpha > opacity[area]
    opacity[area][wins] = alpha[wins]
    squeeze = params.zoom * radius * (0.5 + 0.5 * distance**2)
    source[0][area][wins] = (centre_y - down * squeeze)[wins]
    source[1][area][wins] = (centre_x - across * squeeze)[wins]
    rim = np.clip((distance - 0.55) / 0.45, 0, 1) ** 2
    glint = np.exp(-(((across + 0.3) / 0.16) ** 2) - ((down + 0.45) / 0.12) ** 2)
    shade[area][wins] = (1.1 - 0.6 * rim * (1 - 0.5 * down) + 1.5 * glint)[wins]


def sample_specular_reflection(severity: float, side: int, rng: Generator) -> ReflectionParams:
    """Draws reflections of `severity` in [0, 1]; sizes in pixels grow with `side`."""
    given = {"kind": "highlights", "share": 0.0, "blur": 0.0, "ghost": 0.0}
    if rng.random() < 0.5:
        given = {"kind": "window", "count": 0, "radius": 0.0, "gain": 0.0}
    return draw_fields(ReflectionParams, "specular-reflection", severity, side, rng, **given)


def specular_reflection(
    picture: np.ndarray, params: ReflectionParams, rng: Generator
) -> np.ndarray:
    """Adds highlights, or the reflection in a pane, to float32 `[height, width, 3]`."""
    light = to_light(picture)
    if params.kind == "highlights":
        return to_picture(light + _highlights(picture, params, rng))
    second = picture if params.second is None else params.second.astype(np.float32) / 255
    window = _window_of(second, picture.shape[0], picture.shape[1], rng)
    if params.second is None:
        window = window[:, ::-1]
    return pane(picture, window, params, float(rng.uniform(0, 2 * np.pi)))


def pane(
    picture: np.ndarray, second: np.ndarray, params: ReflectionParams, turn: float
) -> np.ndarray:
    """Computes I = alpha J + (1 - alpha) (R * k) in linear light, 1 - alpha the reflection's share.

    The kernel k is a Gaussian, because the reflected scene is out of focus, at two places: front
    and back of the pane reflect 0.65 and 0.35 of the light.

    Args:
        picture: J, float32 `[height, width, 3]` in [0, 1].
        second: R, of the same shape.
        params: share, blur and ghost.
        turn: direction in radians of the second reflection.

    References:
        Fan et al., CEILNet, ICCV 2017 (blurred reflection layer); Shih et al., Reflection
        Removal Using Ghosting Cues, CVPR 2015 (two reflections).
    """
    mirrored = to_light(second)
    shift = (round(params.ghost * np.sin(turn)), round(params.ghost * np.cos(turn)))
    pad = [(abs(step), abs(step)) for step in shift]
    padded = np.pad(mirrored, (*pad, (0, 0)), mode="symmetric")
    height, width = mirrored.shape[:2]
    top, left = pad[0][0] + shift[0], pad[1][0] + shift[1]
    layer = 0.65 * mirrored + 0.35 * padded[top : top + height, left : left + width]
    layer = ndimage.gaussian_filter(layer, (params.blur, params.blur, 0), mode="reflect")
    alpha = 1 - params.share
    return to_picture(alpha * to_light(picture) + np.float32(params.share) * layer)


def _window_of(photo: np.ndarray, height: int, width: int, rng: Generator) -> np.ndarray:
    """Cuts a random part from a photo and brings it to the size `[height, width]`."""
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * rng.uniform(0.6, 0.95)
    rows, columns = height * scale, width * scale
    top, left = rng.uniform(0, photo.shape[0] - rows), rng.uniform(0, photo.shape[1] - columns)
    box = (left, top, left + columns, top + rows)
    return np.clip(resize(photo, height, width, Image.Resampling.BILINEAR, box), 0, 1)


def _highlights(picture: np.ndarray, params: ReflectionParams, rng: Generator) -> np.ndarray:
    """Computes m Gamma of the dichromatic model I = J + m Gamma, in linear light.

    Around each glint, everything brighter than its surroundings gets a sheen, as wet or
    polished things have; both are on bright parts, which face the lamp. Gamma is the lamp's colour.

    References:
        Shafer, Using Color to Separate Reflection Components, 1985.
    """
    height, width = picture.shape[:2]
    glints, sheen = np.zeros((2, height, width), np.float32)
    bright = luma(picture)
    lean = rng.uniform(-np.pi, np.pi)
    for _ in range(params.count):
        ys, xs = rng.integers(0, height, 16), rng.integers(0, width, 16)
        best = int(bright[ys, xs].argmax())
        place = int(ys[best]), int(xs[best])
        radius = params.radius * float(np.exp(rng.normal(-0.2, 0.4)))
        slim = rng.uniform(0.45, 1.0)
        _add_spot(glints, place, radius, radius * slim, lean + rng.normal(0, 0.3), 1.5)
        _add_spot(sheen, place, 9 * radius, 6 * radius, lean, 1.0)
    around = ndimage.gaussian_filter(bright, 2.5 * params.radius)
    shine = np.clip((bright / (around + 0.02) - 1) / 0.5, 0, 1)
    strength = glints + np.minimum(sheen, 1) * shine
    warmth = rng.uniform(-0.08, 0.08)
    lamp = np.array([1 + warmth, 1, 1 - warmth], np.float32)
    return params.gain * strength[..., None] * lamp


def _add_spot(
    field: np.ndarray,
    place: tuple[int, int],
    long: float,
    slim: float,
    lean: float,
    steepness: float,
) -> None:
    """Adds exp(-q^steepness), q the squared distance in units of the radii `long` and `slim`."""
    (row, column), reach = place, int(np.ceil(2.5 * long))
    top, left = max(row - reach, 0), max(column - reach, 0)
    part = field[top : row + reach + 1, left : column + reach + 1]
    y, x = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]].astype(np.float32)
    along = (x - column) * np.cos(lean) + (y - row) * np.sin(lean)
    across = (y - row) * np.cos(lean) - (x - column) * np.sin(lean)
    square = (along / long) ** 2 + (across / slim) ** 2
    part += np.exp(-(square**steepness))
