"""The five learned no-reference metrics of the release, and NIQE, through pyiqa.

pyiqa brings PyTorch and fetches each metric's network when it is first used; this is the one place
that imports it.
"""

import importlib
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image

from cotir_jax import files

# Our name (the release's column) -> pyiqa's name.
PYIQA_NAMES = {
    "niqe": "niqe",
    "clipiqa_plus": "clipiqa+",
    "qalign": "qalign",
    "liqe": "liqe",
    "maclip": "maclip",
    "clip_iqa": "clipiqa",
}


def open_learned(column: str) -> Callable[[np.ndarray], float]:
    """Loads the learned metric `column`, a key of `PYIQA_NAMES`.

    Returns:
        A function of a uint8 `[height, width, 3]` picture; one call runs at a time.

    Raises:
        ValueError: pyiqa is absent, or cannot make the metric: one line with the reason.
    """
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        raise ValueError(
            f"pyiqa cannot be imported ({files.one_line(error, 200)}); pip install pyiqa"
        ) from None
    try:
        metric = pyiqa.create_metric(PYIQA_NAMES[column])
    except Exception as error:  # networks that cannot be fetched, no GPU, versions at odds
        raise ValueError(
            f"pyiqa cannot load {PYIQA_NAMES[column]} ({files.one_line(error, 200)})"
        ) from None
    lock = threading.Lock()

    def score(picture: np.ndarray) -> float:
        # Pictures pass as Pillow images, so that all metrics see the same 8-bit RGB values.
        with lock:
            return float(metric(Image.fromarray(picture)))

    return score
