"""Trains nano for a few steps on a laptop, offline: builds a benchmark, trains, evaluates, draws.

    python -m cotir_jax.main --config=nano --workdir=/tmp/nano

It continues from the packaged weights on photos inside scikit-image, 30 steps of 2 crops. On two
cores of an AMD EPYC (docs/speed.md, machine D) it takes 1 min 43 s with nothing compiled before,
evaluation and sheet included. Result on 31 test pictures, one of each of its kinds, precise
prompts: PSNR 18.36 -> 25.62 dB, SSIM 0.573 -> 0.785; the packaged weights have 25.71 dB and 0.786
there, so the run shows how training goes and does not improve nano. From nothing:
`--config.init=scratch`, with more samples and steps (`nano_release`).
"""

from cotir_jax.configs import default


def get_config(model: str = "nano"):
    """Returns the laptop's config."""
    config = default.get_config(model)
    config.init = "package"
    config.bench.degradations = "quick"
    config.bench.samples_per_degradation = 2
    config.bench.test_per_degradation = 1
    config.bench.size = 256
    config.data.vague = ((0, 0.3),)
    # A run this short has nothing to choose a checkpoint from.
    config.data.validation = 0
    config.data.workers = 0
    config.data.threads = 2
    config.data.text_cache_gb = 0.3
    config.train.trainable = "all"
    config.train.steps = 30
    # Crops of the size that nano restores in: it judges light and haze by the complete window. With
    # crops of 128 pixels the packaged weights lose 0.3 dB in a run like this.
    config.train.stages = ((30, 256, 2),)
    config.train.learning_rate = 1e-5
    config.train.warmup_steps = 5
    config.train.learning_rate_floor = 1e-6
    config.train.ema_decay = 0.9
    # Nano samples in one step, from t = 1: most samples train there, few at small t, where the
    # velocity of a clean-picture estimate weighs its error by 1 / t^2.
    config.train.full_noise = 0.9
    config.train.timestep_mean = 1.5
    config.constraints.learning_rate = 3e-4
    config.log.every = 5
    config.checkpoint.every = 15
    config.evaluate.enabled = True
    return config
