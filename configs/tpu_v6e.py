"""Trains a published model on Cloud TPU v6e: 16 chips (v6e-16), 32 GB each.

    python -m cotir_jax.main --config=tpu_v6e:klein-4b --workdir=RUN --config.init=MODEL_FOLDER
    python -m cotir_jax.main --config=tpu_v6e --mode=compile --topology=v6e:4x4

The published recipe: 120,001 steps in four stages of 128, 256, 384 and 512 pixels. Larger slices
and more of them work too: `data` takes the devices beyond 16. The steps were compiled (jax
0.12.0.1, libtpu 0.0.50) and never run on a TPU, so neither hours nor quality are known. The
512-pixel stage:

    model        samples  GiB of a chip  seconds to compile  fastest step in seconds
    klein-4b         256   25.4 of 31.2                 245                      0.9
    klein-9b         160   26.7 of 31.2                 227                      1.1
    kontext-12b      192   27.5 of 31.2                 237                      1.2

The fastest step is the model's FLOPs at the chips' bfloat16 peak; a real one takes longer.
"""

from cotir_jax.configs import tpu

_SAMPLES = {"klein-4b": 16, "klein-9b": 10, "kontext-12b": 12}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v6e."""
    return tpu.slice_config(model, _SAMPLES)
