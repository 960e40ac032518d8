"""How high SSIM of lost colour can be: `python tests/benchmarks/lost_colour.py TEST.JSONL`.

Its input has the clean picture's luma to within rounding, so restoring can at best keep that. Means
over the listing's pictures of that kind, restored with their precise prompts by the shipped nano:
SSIM (`image_metrics`, of luma) of the input, of the restored picture, and of the input's luma with
the restored colours (as strong as fits into 8 bits without another luma, then rounded); then
scikit-image's SSIM of the three RGB channels, same window.
"""

import json
import sys
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

from cotir_jax import image_metrics
from cotir_jax.pictures import load_picture
from cotir_jax.restore import Restorer

LUMA = np.array([0.299, 0.587, 0.114])


def ssim_rgb(picture: np.ndarray, clean: np.ndarray) -> float:
    return structural_similarity(
        picture, clean, channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip


def with_luma(restored: np.ndarray, lq: np.ndarray) -> np.ndarray:
    luma = (lq @ LUMA)[..., None]
    colour = restored - (restored @ LUMA)[..., None]
    room = np.where(colour > 0, 255 - luma, luma)
    strength = np.min(room / np.maximum(np.abs(colour), 1e-9), axis=-1, keepdims=True)
    return np.rint(luma + np.minimum(strength, 1) * colour).astype(np.uint8)


def main() -> None:
    listing = Path(sys.argv[1])
    restorer = Restorer.load("nano")
    rows = []
    for line in listing.read_text().splitlines():
        sample = json.loads(line)
        if sample["deg_type"] != "lost_color":
            continue
        path = sample["lq_path"]
        lq = load_picture(listing.parent / path)
        hq = load_picture(listing.parent / path.replace("lq/", "hq/"))
        restored = restorer.pixels(lq, sample["spe_prompt"])
        row = [image_metrics.ssim(x, hq) for x in (lq, restored, with_luma(restored, lq))]
        rows.append([*row, ssim_rgb(lq, hq), ssim_rgb(restored, hq)])
    means = " ".join(f"{mean:.5f}" for mean in np.mean(rows, axis=0))
    print(f"{len(rows)} pictures: input, restored, with input luma; RGB: input, restored: {means}")


if __name__ == "__main__":
    main()
