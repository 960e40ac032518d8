"""What the configs of the TPU versions share: slices of 16 chips, the published models."""

import ml_collections

from cotir_jax.configs import default

_CHIPS = 16
# Samples of a stage relative to the 512-pixel one: smaller pictures, more of them, but not in
# proportion, because a sample's 512 rows of text stay.
_MORE = {128: 3, 256: 2.5, 384: 1.5, 512: 1}


def slice_config(model: str, samples: dict[str, int]) -> ml_collections.ConfigDict:
    """Returns the config of a model on slices of 16 chips.

    Args:
      model: preset, the part of `--config` after the colon.
      samples: samples per device at 512 x 512 pixels, by model: the most that leave 10 % of the
        memory that programs may use, found with `--mode=compile`.

    Raises:
      ValueError: `samples` has no such model.
    """
    published = model.replace("-base", "").removesuffix("-kv")
    if model != "nano" and published not in samples:
        raise ValueError(f"model {model!r}: accepted are nano, {', '.join(samples)}")
    config = default.get_config(model)
    if model == "nano":  # small enough for a full copy on every device
        config.mesh.update({"data": -1, "fsdp": 1})
        config.train.trainable = "all"
        return config
    # The chips' own links gather a layer's weights while the layer before computes: cheaper than
    # `tensor`, which would add up the activations of every layer.
    config.mesh.update({"data": -1, "fsdp": _CHIPS, "tensor": 1})
    # The published benchmark's texts are all different: each device encodes its own.
    config.train.text_encoders = "in_step"
    each = samples[published]
    # Even numbers, so that texts are encoded several at a time.
    config.train.stages = tuple(
        (last, patch, (each if patch == 512 else 2 * int(_MORE[patch] * each / 2)) * _CHIPS)
        for last, patch, _ in config.train.stages
    )
    return config
