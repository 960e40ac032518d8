"""Trains a published model on Cloud TPU v4: 16 chips (v4-32), 32 GB each.

    python -m cotir_jax.main --config=tpu_v4:klein-4b --workdir=RUN --config.init=MODEL_FOLDER
    python -m cotir_jax.main --config=tpu_v4 --mode=compile --topology=v4:2x2x4

The published recipe: 120,001 steps in four stages of 128, 256, 384 and 512 pixels. Larger slices
and more of them work too: `data` takes the devices beyond 16. The steps were compiled (jax
0.12.0.1, libtpu 0.0.50) and never run on a TPU, so neither hours nor quality are known. The
512-pixel stage:

    model        samples  GiB of a chip  seconds to compile  fastest step in seconds
    klein-4b         256   25.2 of 30.8                 117                      3.0
    klein-9b         160   26.4 of 30.8                 127                      3.8
    kontext-12b      176   25.8 of 30.8                 117                      3.7

The fastest step is the model's FLOPs at the chips' bfloat16 peak; a real one takes longer.
"""

from cotir_jax.configs import tpu

_SAMPLES = {"klein-4b": 16, "klein-9b": 10, "kontext-12b": 11}


def get_config(model: str = "klein-4b"):
    """Returns the config of a model on v4."""
    return tpu.slice_config(model, _SAMPLES)
