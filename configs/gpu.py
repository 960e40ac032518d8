"""Trains a published model on NVIDIA GPUs with 80 GB or more each: A100, H100, H200.

    python -m cotir_jax.main --config=gpu:klein-4b --workdir=RUN --config.init=MODEL_FOLDER

The published recipe: 120,001 steps in four stages of 128, 256, 384 and 512 pixels, with the batches
of the release on eight GPUs. Measured with klein-4b and random weights on one H100 at 512 pixels:
436 ms a step of 4 samples (`remat="dots"`), 37.5 % MFU, 48.8 GB. No complete run was made, so the
result is not known, and nothing was run on several cards.
"""

from cotir_jax.configs import default


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on GPUs."""
    config = default.get_config(model)
    if model == "nano":
        config.mesh.update({"data": -1, "fsdp": 1})
        config.train.trainable = "all"
        return config
    # Within a box NVLink gathers weights fast. For several boxes set mesh.data to their number and
    # mesh.fsdp to the GPUs of one, so that only gradients cross the network.
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
    # The published benchmark's texts are all different: each GPU encodes its own.
    config.train.text_encoders = "in_step"
    return config
