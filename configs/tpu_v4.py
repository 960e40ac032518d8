"""Cloud TPU v4: 16 chips (v4-32), 32 GB each.

    python -m cotir_jax.main --config=configs/tpu_v4.py:klein-4b --workdir=gs://BUCKET/run
    python -m cotir_jax.main --config=configs/tpu_v4.py --mode=compile --topology=v4:2x2x4

The same file serves more slices and larger ones: `data` takes the devices beyond 16.
"""

from configs import default

# Samples per device at 512 x 512 pixels: the most that leave 10 % of the 30.75 GiB that
# programs may use (v4); found with --mode=compile.
_SAMPLES = {"klein-4b": 11, "klein-9b": 7, "kontext-12b": 10}
# Smaller pictures, more of them: rows of text stay 512 a sample, so not in proportion.
_MORE = {128: 3, 256: 2.5, 384: 1.5, 512: 1}
_DEVICES = 16


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v4."""
    config = default.get_config(model)
    if model == "nano":  # small enough to be whole on every device
        config.mesh.update({"data": -1, "fsdp": 1})
        config.train.trainable = "all"
        return config
    # The chips' own links gather a layer's weights while the layer before computes: cheaper than
    # `tensor`, which would add up the activations of every layer.
    config.mesh.update({"data": -1, "fsdp": _DEVICES, "tensor": 1})
    each = _SAMPLES[model.replace("-base", "").removesuffix("-kv")]
    config.train.stages = tuple(
        (last, patch, int(_MORE[patch] * each) * _DEVICES) for last, patch, _ in config.train.stages
    )
    return config
