"""Cloud TPU v5e: 16 chips (v5litepod-16), 16 GB each.

    python -m cotir_jax.main --config=configs/tpu_v5e.py:klein-4b --workdir=RUN
    python -m cotir_jax.main --config=configs/tpu_v5e.py --mode=compile --topology=v5e:4x4

The same file serves larger slices and more of them: `data` takes the devices beyond 16.
"""

from configs import tpu

_SAMPLES = {"klein-4b": 7, "klein-9b": 4, "kontext-12b": 4}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v5e."""
    return tpu.get_config(model, _SAMPLES)
