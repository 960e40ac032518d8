"""Drawn pages, judged by what sets slides and cartoons apart from photos."""

import numpy as np
import pytest
from skimage import data, transform

from cotir_jax.bench.pages import draw_page


@pytest.fixture(scope="module")
def photo():
    return np.uint8(transform.resize(data.astronaut(), (128, 128), preserve_range=True))


@pytest.fixture(scope="module")
def pages(photo):
    return [draw_page(photo, np.random.default_rng(seed)) for seed in range(60)]


def _flat(picture):
    """Share of pixels whose right and lower neighbours are within a grey level."""
    grey = picture.astype(int).mean(axis=2)
    steps = np.abs(np.diff(grey, axis=0))[:, 1:], np.abs(np.diff(grey, axis=1))[1:]
    return np.mean((steps[0] <= 1) & (steps[1] <= 1))


def test_a_page_is_a_function_of_photo_and_generator(photo, pages):
    before = photo.copy()
    np.testing.assert_array_equal(draw_page(photo, np.random.default_rng(3)), pages[3])
    np.testing.assert_array_equal(photo, before)
    assert {(page.shape, page.dtype) for page in pages} == {((128, 128, 3), np.dtype(np.uint8))}
    assert len({page.tobytes() for page in pages}) == 60


def test_pages_are_flat_areas_with_hard_edges(photo, pages):
    flat = np.array([_flat(page) for page in pages])
    assert np.median(flat) > 2 * _flat(photo)
    # Text and outlines: nearly every page has steps of a third of the range.
    steps = [np.abs(np.diff(page.astype(int), axis=1)).max() for page in pages]
    assert np.mean(np.array(steps) > 85) > 0.9


def test_papers_are_white_and_not(pages):
    """White paper is what photos lack most; colours and dark screens come too."""
    commonest = [np.median(page.reshape(-1, 3), axis=0) for page in pages]
    white = np.mean([colour.min() > 215 for colour in commonest])
    assert 0.25 < white < 0.75
    assert min(colour.mean() for colour in commonest) < 100


def test_half_of_the_pages_show_the_photo(photo, pages):
    """Half of them change with the photo that they are drawn around."""
    other = np.zeros_like(photo)
    changed = [
        (draw_page(other, np.random.default_rng(seed)) != page).any()
        for seed, page in enumerate(pages)
    ]
    assert 0.3 < np.mean(changed) < 0.7
