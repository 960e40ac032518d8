"""Cloud TPU v5p: 16 chips (v5p-32), 95 GB each.

    python -m cotir_jax.main --config=configs/tpu_v5p.py:klein-4b --workdir=RUN
    python -m cotir_jax.main --config=configs/tpu_v5p.py --mode=compile --topology=v5p:2x2x4

The same file serves larger slices and more of them: `data` takes the devices beyond 16.
"""

from configs import tpu

_SAMPLES = {"klein-4b": 52, "klein-9b": 32, "kontext-12b": 42}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v5p."""
    return tpu.get_config(model, _SAMPLES)
