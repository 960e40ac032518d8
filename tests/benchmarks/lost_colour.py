"""How high SSIM of lost colour can be: `python tests/benchmarks/lost_colour.py TEST.JSONL`.

Its input has the clean picture's luma to within rounding, so restoring can at best keep that. Means
over the listing's pictures of that kind, restored with their precise prompts by the shipped nano:
SSIM (`image_metrics`, of luma) of the input, of the restored picture, and of the restored picture
shifted to the input's luma pixel by pixel (clipped and rounded to 8 bits); then scikit-image's SSIM
of the three RGB channels, same window.
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
        shift = ((lq - restored.astype(np.float64)) @ LUMA)[..., None]
        shifted = np.clip(np.rint(restored + shift), 0, 255).astype(np.uint8)
        row = [image_metrics.ssim(x, hq) for x in (lq, restored, shifted)]
        rows.append([*row, ssim_rgb(lq, hq), ssim_rgb(restored, hq)])
    means = " ".join(f"{mean:.5f}" for mean in np.mean(rows, axis=0))
    print(f"{len(rows)} pictures: input, restored, shifted; RGB of input, restored: {means}")


if __name__ == "__main__":
    main()
