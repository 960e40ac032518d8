"""Nano on a laptop, offline: build a benchmark, train, evaluate.

    python -m cotir_jax.main --config=nano --workdir=/tmp/nano

Two CPU cores, from the packaged weights: see README for time and figures. From nothing:
`--config.init=scratch`.
"""

from cotir_jax.configs import default


def get_config(model: str = "nano"):
    """Returns the laptop's config."""
    config = default.get_config(model)
    config.init = "package"
    config.bench.degradations = "quick"
    config.bench.samples_per_degradation = 40
    config.bench.test_per_degradation = 3
    config.bench.size = 176
    config.data.vague = ((0, 0.3),)
    config.data.workers = 0
    config.data.threads = 2
    config.data.text_cache_gb = 0.3
    config.train.trainable = "all"
    config.train.steps = 160
    config.train.stages = ((160, 128, 8),)
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 20
    config.train.learning_rate_floor = 1e-6
    config.train.ema_decay = 0.99
    # Nano samples in one step, from t = 1: most samples train there, few at small t, where the
    # velocity of a clean-picture estimate weighs its error by 1 / t^2.
    config.train.full_noise = 0.9
    config.train.timestep_mean = 1.5
    config.constraints.learning_rate = 3e-4
    config.log.every = 10
    config.checkpoint.every = 80
    config.evaluate.enabled = True
    return config
