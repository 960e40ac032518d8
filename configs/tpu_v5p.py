"""Trains a published model on Cloud TPU v5p: 16 chips (v5p-32), 95 GB each.

    python -m cotir_jax.main --config=tpu_v5p:klein-4b --workdir=RUN --config.init=MODEL_FOLDER
    python -m cotir_jax.main --config=tpu_v5p --mode=compile --topology=v5p:2x2x4

The published recipe: 120,001 steps in four stages of 128, 256, 384 and 512 pixels. Larger slices
and more of them work too: `data` takes the devices beyond 16. The steps were compiled (jax
0.12.0.1, libtpu 0.0.50) and never run on a TPU, so neither hours nor quality are known. The
512-pixel stage:

    model        samples  GiB of a chip  seconds to compile  fastest step in seconds
    klein-4b         832   85.2 of 95.7                 198                      5.9
    klein-9b         512   70.8 of 95.7                 130                      7.2
    kontext-12b      672   83.1 of 95.7                 189                      8.5

The fastest step is the model's FLOPs at the chips' bfloat16 peak; a real one takes longer.
"""

from cotir_jax.configs import tpu

_SAMPLES = {"klein-4b": 52, "klein-9b": 32, "kontext-12b": 42}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v5p."""
    return tpu.slice_config(model, _SAMPLES)
