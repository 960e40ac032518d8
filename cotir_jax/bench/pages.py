"""Pages drawn for training: slides, charts, screens and cartoons, which photo collections lack."""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from cotir_jax.images.pictures import load_font

_LETTERS = np.array(list("eeetttaaooiinnsshhrrddlcumwfgypbvkEATSNORIDLCPMBFHGW0123456789"))
_FINER = 2  # pages are drawn at twice their size and scaled down, which smooths their edges


def draw_page(photo: np.ndarray, rng: Generator) -> np.ndarray:
    """Draws a page around a photo: paper, blocks of text, charts, figures, the photo as an inset.

    A model that has seen only photos takes white paper and hard edges for glare, and corrects
    them. Photo and page are uint8 `[side, side, 3]`.
    """
    side = _FINER * photo.shape[0]
    page = _paper(side, rng)
    draw_on = ImageDraw.Draw(page)
    ink = _contrasting(np.asarray(page).mean((0, 1)), rng)
    for _ in range(int(rng.integers(2, 8))):
        width, height = (rng.uniform(0.15, 0.9, 2) * side).astype(int)
        left, top = int(rng.uniform(-0.1, 0.85) * side), int(rng.uniform(-0.1, 0.85) * side)
        box = (left, top, left + int(width), top + int(height))
        draw = _BLOCKS[int(rng.choice(len(_BLOCKS), p=_ODDS))]
        draw(draw_on, box, ink, rng)
    if rng.random() < 0.5:
        inset = rng.uniform(0.25, 0.7, 2) * side
        shown = Image.fromarray(photo).resize((int(inset[0]), int(inset[1])))
        page.paste(shown, tuple(int(x) for x in rng.uniform(0, 0.8, 2) * (side - inset.min())))
    small = page.resize(photo.shape[1::-1], Image.Resampling.LANCZOS)
    return np.array(small)


def _paper(side: int, rng: Generator) -> Image.Image:
    """Draws paper, white or nearly, else of any colour; a third blends into a second colour."""
    ends = [
        rng.uniform(0, 255, 3) if rng.random() < 0.4 else 255 - np.abs(rng.normal(0, 10, 3))
        for _ in range(2)
    ]
    if rng.random() < 0.67:
        ends[1] = ends[0]
    ramp = np.linspace(0, 1, side)[:, None, None]
    colours = np.broadcast_to((1 - ramp) * ends[0] + ramp * ends[1], (side, side, 3))
    if rng.random() < 0.5:
        colours = colours.transpose(1, 0, 2)
    return Image.fromarray(np.rint(np.clip(colours, 0, 255)).astype(np.uint8))


def _contrasting(paper: np.ndarray, rng: Generator) -> tuple[int, ...]:
    """Chooses ink that can be read on paper of this mean colour: black or white, or nearly."""
    away = np.abs(rng.normal(0, 30, 3))
    return tuple(int(x) for x in np.clip(away if paper.mean() > 110 else 255 - away, 0, 255))


def _colour(rng: Generator) -> tuple[int, ...]:
    return tuple(int(x) for x in rng.integers(0, 256, 3))


def _words(draw_on, box, ink, rng) -> None:
    """Draws lines of made-up words of one size, a headline where the size is large."""
    left, top, right, bottom = box
    size = int(np.exp(rng.uniform(np.log(14), np.log(70))))
    font = load_font(size)
    colour = ink if rng.random() < 0.7 else _colour(rng)
    for line in range(max((bottom - top) // int(1.4 * size), 1)):
        count = max(int((right - left) / (0.55 * size)), 1)
        letters = rng.choice(_LETTERS, count)
        letters[rng.random(count) < 0.17] = " "
        draw_on.text((left, top + int(1.4 * size) * line), "".join(letters), colour, font=font)


def _bars(draw_on, box, ink, rng) -> None:
    left, top, right, bottom = box
    edges = np.linspace(left, right, int(rng.integers(4, 12))).astype(int)
    colour = _colour(rng)
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        height = int(rng.uniform(0.1, 1) * (bottom - top))
        draw_on.rectangle((start + 2, bottom - height, max(end - 2, start + 2), bottom), colour)
    draw_on.line((left, top, left, bottom, right, bottom), ink, 2)


def _curves(draw_on, box, ink, rng) -> None:
    left, top, right, bottom = box
    x = np.linspace(left, right, 24)
    for _ in range(int(rng.integers(1, 4))):
        steps = np.cumsum(rng.normal(0, 0.12, len(x))) + rng.uniform(0.2, 0.8)
        y = top + (bottom - top) * np.clip(steps, 0, 1)
        draw_on.line(list(zip(x, y, strict=True)), _colour(rng), int(rng.integers(2, 7)))
    draw_on.rectangle(box, outline=ink, width=2)


def _table(draw_on, box, ink, rng) -> None:
    left, top, right, bottom = box
    if rng.random() < 0.5:
        draw_on.rectangle(box, _colour(rng))
    for x in np.linspace(left, right, int(rng.integers(2, 8))):
        draw_on.line((x, top, x, bottom), ink, 2)
    for y in np.linspace(top, bottom, int(rng.integers(2, 12))):
        draw_on.line((left, y, right, y), ink, 2)


def _panel(draw_on, box, ink, rng) -> None:
    """Draws a filled box or ellipse, as buttons and cartoons have; half of them have an outline."""
    shape = draw_on.ellipse if rng.random() < 0.4 else draw_on.rectangle
    shape(box, _colour(rng), ink if rng.random() < 0.5 else None, int(rng.integers(2, 9)))


def _cartoon(draw_on, box, ink, rng) -> None:
    """Draws a filled outline of random corners."""
    left, top, right, bottom = box
    turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
    reach = rng.uniform(0.4, 1, len(turns))
    x = (left + right) / 2 + reach * np.cos(turns) * (right - left) / 2
    y = (top + bottom) / 2 + reach * np.sin(turns) * (bottom - top) / 2
    corners = list(zip(x, y, strict=True))
    draw_on.polygon(corners, _colour(rng), ink, int(rng.integers(2, 9)))


_BLOCKS = (_words, _bars, _curves, _table, _panel, _cartoon)
_ODDS = (0.45, 0.08, 0.08, 0.07, 0.16, 0.16)
