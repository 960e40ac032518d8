"""Degradations after the sensor: lost colour, a phone's processing, watermarks."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

from cotir_jax.bench.degradations.filters import guided_filter, luma, resize
from cotir_jax.bench.degradations.ranges import draw, draw_fields
from cotir_jax.bench.degradations.sensor import JpegParams, jpeg_compression
from cotir_jax.images.pictures import load_font

_WORDS = (
    "SAMPLE", "PREVIEW", "DRAFT", "COPYRIGHT", "PROOF", "DEMO", "STOCK PHOTO", "DO NOT COPY",
    "ALL RIGHTS RESERVED", "CONFIDENTIAL", "Photo Studio", "www.example.com", "Gallery",
)  # fmt: skip


@dataclass(frozen=True)
class LostColorParams:
    """The share of colour that is left, 0 for a grey picture."""

    kept: float


@dataclass(frozen=True)
class PhoneParams:
    """What a phone's small sensor and its processing do to a picture.

    `saturation` multiplies colour, `contrast` mixes in a steep tone curve, `smear` mixes in
    edge-keeping smoothing of fine texture, `halo` is the strength of the sharpening,
    `chroma` the standard deviation of colour blotches in 255ths, `quality` that of the JPEG.
    `cast` multiplies the channels.
    """

    saturation: float
    contrast: float
    smear: float
    halo: float
    chroma: float
    quality: int
    cast: tuple[float, float, float]


@dataclass(frozen=True)
class WatermarkParams:
    """What is written or drawn over the picture, where, how large and how opaque.

    `size` is the letters' height in pixels, `x` and `y` the centre as shares of width and
    height (not for tiles), `colour` in [0, 1].
    """

    text: str
    layout: Literal["line", "tiles", "badge", "frame"]
    size: float
    degrees: float
    opacity: float
    colour: tuple[float, float, float]
    x: float
    y: float


def lost_color(picture: np.ndarray, params: LostColorParams, rng: Generator) -> np.ndarray:
    """Fades colours: I = k J + (1 - k) Y, Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    grey = luma(picture)[..., None]
    return grey + np.float32(params.kept) * (picture - grey)


def sample_smartphone_to_dslr(severity: float, side: int, rng: Generator) -> PhoneParams:
    """Draws a phone worse than a DSLR by `severity` in [0, 1]."""
    name, neutral = "smartphone-to-dslr", (1.0, 1.0, 1.0)
    params = draw_fields(PhoneParams, name, severity, side, rng, quality=0, cast=neutral)
    quality = round(draw(name, "quality", severity, rng))
    red, green, blue = (float(1 + (0.02 + 0.05 * severity) * rng.uniform(-1, 1)) for _ in range(3))
    return replace(params, quality=quality, cast=(red, green, blue))


def smartphone_to_dslr(picture: np.ndarray, params: PhoneParams, rng: Generator) -> np.ndarray:
    """Passes a DSLR's picture through a phone: smear, tone curve, colour, halos, JPEG.

    There is no agreed formula (DPED has photographed pairs); this is a chain of a phone's known
    faults, with Y luma and C = J - Y: Y is smoothed along edges, then bent by the curve
    3 Y^2 - 2 Y^3, then sharpened; I = cast (Y' + saturation (C + blotches)).

    References:
        Ignatov et al., DPED, ICCV 2017 (what differs between phones and a DSLR).
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    bright = luma(picture)
    colour = picture - bright[..., None]
    smooth = guided_filter(bright, bright, max(side // 170, 1), 0.03**2)
    bright = bright + params.smear * (smooth - bright)
    curved = bright * bright * (3 - 2 * bright)
    bright = bright + params.contrast * (curved - bright)
    blurred = ndimage.gaussian_filter(bright, max(1.6 * side / 512, 0.6))
    bright = bright + params.halo * (bright - blurred)
    colour = params.saturation * (colour + _blotches(height, width, params.chroma / 255, rng))
    phone = (bright[..., None] + colour) * np.asarray(params.cast, np.float32)
    return jpeg_compression(np.clip(phone, 0, 1), JpegParams(params.quality, True), rng)


def _blotches(height: int, width: int, sigma: float, rng: Generator) -> np.ndarray:
    """Draws colour noise coarser than a pixel, luma 0, standard deviation about `sigma`."""
    rows, columns = max(height // 3, 1), max(width // 3, 1)
    noise = np.moveaxis(rng.standard_normal((3, rows, columns), dtype=np.float32), 0, 2)
    # 1.5: bicubic enlarging averages neighbours away.
    field = resize(noise * 1.5 * sigma, height, width, Image.Resampling.BICUBIC)
    return field - luma(field)[..., None]


def sample_watermark(severity: float, side: int, rng: Generator) -> WatermarkParams:
    """Draws a watermark of `severity` in [0, 1]; letters grow with the picture's `side`."""
    text = str(rng.choice(_WORDS))
    if rng.random() < 0.4:
        text += f" {rng.integers(1990, 10000)}"
    layout = ("line", "tiles", "badge", "frame")[rng.integers(4)]
    tone = float(rng.uniform(0.85, 1.0) if rng.random() < 0.65 else rng.uniform(0, 0.25))
    colour = (tone, tone, tone)
    if rng.random() < 0.3:
        red, green, blue = (float(value) for value in rng.uniform(0, 1, 3))
        colour = (red, green, blue)
    return WatermarkParams(
        text=text,
        layout=layout,
        size=max(draw("watermark", "size", severity, rng) * side, 6.0),
        degrees=draw("watermark", "degrees", severity, rng) if rng.random() < 0.6 else 0.0,
        opacity=draw("watermark", "opacity", severity, rng),
        colour=colour,
        x=float(rng.uniform(0.25, 0.75)),
        y=float(rng.uniform(0.15, 0.85)),
    )


def watermark(picture: np.ndarray, params: WatermarkParams, rng: Generator) -> np.ndarray:
    """Prints over a picture: I = (1 - a M) J + a M W, M the letters' and shapes' cover.

    References:
        Liu et al., WDNet, WACV 2021 (CLWD data: opacity 0.3 to 0.7, any size, place, angle).
    """
    mask = watermark_mask(picture.shape[0], picture.shape[1], params)
    cover = np.float32(params.opacity) * mask[..., None]
    return picture + cover * (np.asarray(params.colour, np.float32) - picture)


def watermark_mask(height: int, width: int, params: WatermarkParams) -> np.ndarray:
    """Draws M, the cover of letters and shapes, float32 `[height, width]` in [0, 1]."""
    stamp = {"badge": _badge, "frame": _frame}.get(params.layout, _letters)(params)
    if params.layout == "tiles":
        return _tiled(stamp, height, width, params)
    # Letters that would leave the picture are made smaller.
    room = min(0.95 * width / stamp.width, 0.95 * height / stamp.height, 1.0)
    if room < 1:
        size = (max(int(stamp.width * room), 1), max(int(stamp.height * room), 1))
        stamp = stamp.resize(size, Image.Resampling.LANCZOS)
    stamp = stamp.rotate(params.degrees, Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("L", (width, height))
    left, top = (
        min(max(int(share * whole - part / 2), min(whole - part, 0)), max(whole - part, 0))
        for share, whole, part in ((params.x, width, stamp.width), (params.y, height, stamp.height))
    )
    canvas.paste(stamp, (left, top))
    return np.asarray(canvas, np.float32) / 255


def _tiled(stamp: Image.Image, height: int, width: int, params: WatermarkParams) -> np.ndarray:
    reach = int(np.hypot(height, width)) + 2
    canvas = Image.new("L", (reach, reach))
    gap_x, gap_y = stamp.width + int(1.5 * params.size), int(2.8 * params.size)
    for number, top in enumerate(range(0, reach, gap_y)):
        for left in range(-(number % 2) * gap_x // 2, reach, gap_x):
            canvas.paste(stamp, (left, top))
    turned = canvas.rotate(params.degrees, Image.Resampling.BICUBIC)
    left, top = (reach - width) // 2, (reach - height) // 2
    return np.asarray(turned.crop((left, top, left + width, top + height)), np.float32) / 255


def _letters(params: WatermarkParams) -> Image.Image:
    """Draws the text as cover, an image of mode L of the text's size."""
    font = load_font(params.size)
    left, top, right, bottom = (int(value) for value in font.getbbox(params.text))
    image = Image.new("L", (max(right - left, 1) + 2, max(bottom - top, 1) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), params.text, 255, font=font)
    return image


def _badge(params: WatermarkParams) -> Image.Image:
    """Draws a ring with a bar through it that bears the text."""
    letters = _letters(params)
    side = int(letters.width * 0.8 + 2 * params.size)
    thick = max(int(params.size / 6), 1)
    image = Image.new("L", (max(side, letters.width), side))
    draw_on = ImageDraw.Draw(image)
    left = (image.width - side) // 2
    draw_on.ellipse((left, 0, left + side - 1, side - 1), outline=255, width=thick)
    inner = int(0.22 * side)
    draw_on.regular_polygon((image.width // 2, inner + thick, 0.6 * inner), 5, fill=255)
    middle = (side - letters.height) // 2
    band = (0, middle - thick, image.width, middle + letters.height + thick)
    draw_on.rectangle(band, fill=0)
    image.paste(letters, ((image.width - letters.width) // 2, middle))
    return image


def _frame(params: WatermarkParams) -> Image.Image:
    """Draws the text in a box, with a line below it."""
    letters = _letters(params)
    thick, room = max(int(params.size / 8), 1), int(params.size * 0.6)
    image = Image.new("L", (letters.width + 2 * room, letters.height + 3 * room))
    draw_on = ImageDraw.Draw(image)
    box = (0, 0, image.width - 1, image.height - 1)
    draw_on.rectangle(box, outline=255, width=thick)
    image.paste(letters, (room, room))
    line = letters.height + int(1.8 * room)
    draw_on.line((room, line, image.width - room, line), fill=255, width=thick)
    return image
