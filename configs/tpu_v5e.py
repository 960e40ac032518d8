"""Trains a published model on Cloud TPU v5e: 16 chips (v5litepod-16), 16 GB each.

    python -m cotir_jax.main --config=tpu_v5e:klein-4b --workdir=RUN --config.init=MODEL_FOLDER
    python -m cotir_jax.main --config=tpu_v5e --mode=compile --topology=v5e:4x4

The published recipe: 120,001 steps in four stages of 128, 256, 384 and 512 pixels. Larger slices
and more of them work too: `data` takes the devices beyond 16. The steps were compiled (jax
0.12.0.1, libtpu 0.0.50) and never run on a TPU, so neither hours nor quality are known. The
512-pixel stage:

    model        samples  GiB of a chip  seconds to compile  fastest step in seconds
    klein-4b         112   13.7 of 15.8                 143                      1.8
    klein-9b          64   14.0 of 15.8                 143                      2.1
    kontext-12b       64   12.0 of 15.8                 148                      1.9

The fastest step is the model's FLOPs at the chips' bfloat16 peak; a real one takes longer.
"""

from cotir_jax.configs import tpu

_SAMPLES = {"klein-4b": 7, "klein-9b": 4, "kontext-12b": 4}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v5e."""
    return tpu.slice_config(model, _SAMPLES)
