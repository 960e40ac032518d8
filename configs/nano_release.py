"""The run behind the next weights to ship as nano: hours on two CPU cores, from nothing.

    python -m cotir_jax.main --config=configs/nano_release.py --workdir=W \
      --config.bench.photos=PHOTOS --config.bench.test_photos=TEST_PHOTOS

All degradations and composites, every sample made when it is read, so that none comes twice. Start
the same command again to continue.
"""

from configs import nano


def get_config(model: str = "nano"):
    """Returns the config of the release's run."""
    config = nano.get_config(model)
    config.init = "scratch"
    config.data.fresh = True
    config.data.fresh_sizes = (192, 256, 320)
    config.data.workers = 1
    config.data.threads = 1
    # Nearly every thought is new.
    config.train.text_encoders = "in_step"
    config.bench.degradations = "all"
    config.bench.size = 256
    # For validation alone: training samples are fresh.
    config.bench.samples_per_degradation = 2
    config.bench.test_per_degradation = 5
    config.train.steps = 3450
    # Most steps on crops, which cost less than half; then the size that restoring looks at.
    config.train.stages = ((3000, 128, 8), (3450, 192, 8))
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 200
    config.train.learning_rate_floor = 1e-6
    config.train.ema_decay = 0.998
    config.log.every = 25
    config.checkpoint.every = 400
    return config
