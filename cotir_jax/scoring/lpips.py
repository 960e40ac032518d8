"""LPIPS, version 0.1 on AlexNet: a distance between pictures that follows what people see.

Nothing is downloaded: the user gives the files with the network's and the linear layers' weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cotir_jax.conversion.torch_files import read_tensors
from cotir_jax.scoring.full_reference import check

# A smaller picture has no position left at the deepest features.
MIN_SIDE = 31

# Index in torchvision's `alexnet.features`; output and input channels, side of the kernel, stride,
# padding.
_CONVOLUTIONS = {
    0: (64, 3, 11, 4, 2),
    3: (192, 64, 5, 1, 2),
    6: (384, 192, 3, 1, 1),
    8: (256, 384, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
_AFTER_POOLING = (3, 6)

# Of pictures in [-1, 1], per channel.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)

Weights = Mapping[str, jax.Array]


def load_lpips(files: Sequence[Path | str]) -> Weights:
    """Reads AlexNet and the linear layers from `.pth`, `.pt` or `.safetensors` files.

    Names are torchvision's (`features.0.weight`) or those of LPIPS's own state dict
    (`net.slice1.0.weight`) for AlexNet, and `lin0.model.1.weight` or `lins.0.model.1.weight` for
    the linear layers; other tensors in the files (AlexNet's classifier) are ignored.

    Returns:
      "kernel0", "bias0", ... "linear0", ...; kernels `[height, width, in, out]`, linear layers
      `[channels]`, float32.

    Raises:
      ValueError: a missing or damaged file, a missing tensor, or one of another shape.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= read_tensors(Path(file))
    where = " and ".join(str(file) for file in files)

    def find(names: tuple[str, str], *shape: int) -> np.ndarray:
        found = next((name for name in names if name in tensors), None)
        if found is None:
            raise ValueError(
                f"{where}: no tensor {' or '.join(names)}; LPIPS needs torchvision's AlexNet and "
                "the linear layers of lpips v0.1, in one file or two"
            )
        if (given := tensors[found].shape) != shape:
            raise ValueError(f"{where}: {found} is {list(given)}, expected {list(shape)} (AlexNet)")
        return tensors[found]

    weights = {}
    for layer, (index, (out, into, side, _, _)) in enumerate(_CONVOLUTIONS.items()):
        one, other = f"features.{index}", f"net.slice{layer + 1}.{index}"
        kernel = find((f"{one}.weight", f"{other}.weight"), out, into, side, side)
        weights[f"kernel{layer}"] = kernel.transpose(2, 3, 1, 0)
        weights[f"bias{layer}"] = find((f"{one}.bias", f"{other}.bias"), out)
        names = (f"lin{layer}.model.1.weight", f"lins.{layer}.model.1.weight")
        weights[f"linear{layer}"] = find(names, 1, out, 1, 1).reshape(out)
    return {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}


def lpips(restored: np.ndarray, reference: np.ndarray, weights: Weights) -> float | None:
    """Computes the perceptual distance: weighted squared differences of five feature maps.

    `weights` come from `load_lpips`; the pictures are those of `full_reference`'s metrics.

    Returns:
      0 for equal pictures, above for others; None where a side is below `MIN_SIDE`.

    References:
      Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, 2018.
    """
    check(restored, reference)
    if min(reference.shape[:2]) < MIN_SIDE:
        return None
    return float(_distance(weights, np.stack([restored, reference])))


@jax.jit
def _distance(weights: Weights, pair: jax.Array) -> jax.Array:
    """Computes the distance of two pictures, uint8 `[2, height, width, 3]`; float32 scalar."""
    tokens = pair.astype(jnp.float32) * (2 / 255) - 1
    total = jnp.zeros(())
    for layer, features in enumerate(_features(weights, (tokens - _SHIFT) / _SCALE)):
        length = jnp.sqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True))
        unit = features / (length + 1e-10)
        difference = jnp.square(unit[0] - unit[1])
        total += jnp.mean(difference @ weights[f"linear{layer}"])
    return total


def _features(weights: Weights, pictures: jax.Array) -> list[jax.Array]:
    """Computes AlexNet's five rectified feature maps, `[batch, height, width, channels]` each."""
    maps = []
    hidden = pictures
    for layer, (index, (*_, stride, padding)) in enumerate(_CONVOLUTIONS.items()):
        if index in _AFTER_POOLING:
            hidden = nnx.max_pool(hidden, (3, 3), strides=(2, 2))
        hidden = jax.lax.conv_general_dilated(
            hidden,
            weights[f"kernel{layer}"],
            window_strides=(stride, stride),
            padding=[(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        hidden = jax.nn.relu(hidden + weights[f"bias{layer}"])
        maps.append(hidden)
    return maps
