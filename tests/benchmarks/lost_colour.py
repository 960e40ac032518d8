"""How high SSIM of lost colour can be: `python tests/benchmarks/lost_colour.py TEST.JSONL`.

Its input has the clean picture's luma to within rounding, so restoring can at best keep that. Means
over the listing's pictures of that kind, restored with their precise prompts by the shipped nano:
SSIM (`image_metrics`, of luma) of the input, of the restored picture, and of the input's luma with
the restored colours (as strong as fits into 8 bits without another luma), its channels rounded each
by itself and rounded together to the nearest luma; then scikit-image's SSIM of the three RGB
channels, same window.
"""

import json
import sys
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

from cotir_jax.images.pictures import load_picture
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.scoring import full_reference

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
    return luma + np.minimum(strength, 1) * colour


def rounded(picture: np.ndarray) -> np.ndarray:
    return np.rint(picture).astype(np.uint8)


def rounded_to_luma(picture: np.ndarray) -> np.ndarray:
    """Each channel up or down, so that luma is nearest."""
    ways = np.array(list(np.ndindex(2, 2, 2)))
    found = np.clip(np.floor(picture)[..., None, :] + ways, 0, 255)
    error = np.abs(found @ LUMA - (picture @ LUMA)[..., None])
    best = error.argmin(axis=-1)[..., None, None]
    return np.take_along_axis(found, best, axis=-2)[..., 0, :].astype(np.uint8)


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
        restored = restorer(lq, sample["spe_prompt"]).image
        kept = with_luma(restored, lq)
        tried = lq, restored, rounded(kept), rounded_to_luma(kept)
        row = [full_reference.ssim(picture, hq) for picture in tried]
        rows.append([*row, ssim_rgb(lq, hq), ssim_rgb(restored, hq)])
    means = " ".join(f"{mean:.5f}" for mean in np.mean(rows, axis=0))
    what = "input, restored, with input luma, nearest to it; RGB: input, restored"
    print(f"{len(rows)} pictures: {what}: {means}")


if __name__ == "__main__":
    main()
