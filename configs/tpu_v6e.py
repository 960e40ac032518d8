"""Cloud TPU v6e: 16 chips (v6e-16), 32 GB each.

    python -m cotir_jax.main --config=configs/tpu_v6e.py:klein-4b --workdir=RUN
    python -m cotir_jax.main --config=configs/tpu_v6e.py --mode=compile --topology=v6e:4x4

The same file serves larger slices and more of them: `data` takes the devices beyond 16.
"""

from configs import tpu

_SAMPLES = {"klein-4b": 16, "klein-9b": 10, "kontext-12b": 12}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v6e."""
    return tpu.get_config(model, _SAMPLES)
