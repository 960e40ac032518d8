"""How far windows and cells show on a smooth sky: `python tests/benchmarks/seams.py [MODEL]`.

Mean absolute difference of neighbouring columns, of 255, mean of RGB first, of a restored synthetic
sky of 512x768 (a vertical blue gradient, also darkened, hazy and noisy): where windows begin or
end (within two columns) against elsewhere, and where cells of the convolutional head (patches, in
a model without it) meet against within them. Then PSNR between the result and that of the same
weights given 384 pixels at once, on the darkened sky.
"""

import dataclasses
import sys

import numpy as np

from cotir_jax.images import tiling
from cotir_jax.models import nano_head
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.scoring import full_reference

HEIGHT, WIDTH = 512, 768


def skies() -> dict[str, np.ndarray]:
    """uint8 pictures by name."""
    down = np.linspace(0, 1, HEIGHT)[:, None, None]
    sky = (np.array([70, 120, 200]) * (1 - down) + np.array([190, 210, 235]) * down) * np.ones(
        (1, WIDTH, 1)
    )
    noise = np.random.default_rng(0).normal(0, 12, sky.shape)
    kinds = {"plain": sky, "dark": sky * 0.3, "hazy": sky * 0.5 + 110, "noisy": sky + noise}
    return {name: np.clip(np.rint(x), 0, 255).astype(np.uint8) for name, x in kinds.items()}


def main() -> None:
    restorer = Restorer.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
    tile, patch = restorer.config.tile, restorer.config.patch
    lefts = tiling.starts(WIDTH, tile, patch)
    near, meets = np.zeros(WIDTH - 1, bool), np.zeros(WIDTH - 1, bool)
    for edge in {*lefts[1:], *(left + tile for left in lefts[:-1])}:
        near[max(0, edge - 2) : edge + 1] = True
    cell = nano_head.CELL if restorer.config.detail_channels else patch
    meets[cell - 1 :: cell] = True
    print("| sky | window borders | elsewhere | cell borders | within cells |\n|" + 5 * "---|")
    for name, sky in skies().items():
        restored = restorer(sky).image.astype(np.float64).mean(axis=2)
        step = np.abs(np.diff(restored, axis=1)).mean(axis=0)
        figures = (step[near], step[~near], step[meets], step[~meets])
        print(f"| {name} | " + " | ".join(f"{figure.mean():.2f}" for figure in figures) + " |")
    dark = skies()["dark"][:384, :384]
    model, autoencoder = restorer.merge(restorer.weights)
    model.config = dataclasses.replace(restorer.config, tile=384)
    wide = Restorer(model, autoencoder, restorer.encoders, restorer.mesh)
    print(
        f"384 pixels at once: {full_reference.psnr(wide(dark).image, restorer(dark).image):.1f} dB"
    )


if __name__ == "__main__":
    main()
