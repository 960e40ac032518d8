"""Cloud TPU v5p: 16 chips (v5p-32), 95 GB each.

    python -m cotir_jax.main --config=configs/tpu_v5p.py:klein-4b --workdir=gs://BUCKET/run
    python -m cotir_jax.main --config=configs/tpu_v5p.py --mode=compile --topology=v5p:2x2x4

The same file serves more slices and larger ones: `data` takes the devices beyond 16.
"""

from configs import default

# Samples per device at 512 x 512 pixels: the most that leave 10 % of the 95.74 GiB that
# programs may use (v5p); found with --mode=compile.
_SAMPLES = {"klein-4b": 38, "klein-9b": 27, "kontext-12b": 35}
# Smaller pictures, more of them: rows of text stay 512 a sample, so not in proportion.
_MORE = {128: 3, 256: 2.5, 384: 1.5, 512: 1}
_DEVICES = 16


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v5p."""
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
