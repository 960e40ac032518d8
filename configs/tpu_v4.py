"""Cloud TPU v4: 16 chips (v4-32), 32 GB each.

    python -m cotir_jax.main --config=configs/tpu_v4.py:klein-4b --workdir=RUN
    python -m cotir_jax.main --config=configs/tpu_v4.py --mode=compile --topology=v4:2x2x4

The same file serves larger slices and more of them: `data` takes the devices beyond 16.
"""

from configs import tpu

_SAMPLES = {"klein-4b": 16, "klein-9b": 10, "kontext-12b": 11}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v4."""
    return tpu.get_config(model, _SAMPLES)
