"""One box of NVIDIA GPUs, or several: A100, H100, H200 with 80 GB or more each.

    python -m cotir_jax.main --config=configs/gpu.py:klein-4b --workdir=RUN

Batches are those of the release (eight GPUs). We ran klein-4b's step and restore on one H100, with
random weights, and trained nano there (README); several cards we had not.
"""

from configs import default


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
