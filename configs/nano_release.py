"""The run behind the next weights to ship as nano: hours on two CPU cores, from nothing.

    python -m cotir_jax.main --config=configs/nano_release.py --workdir=W \
      --config.bench.photos=PHOTOS --config.bench.test_photos=TEST_PHOTOS

All degradations and composites, every sample made when it is read, so that none comes twice. Start
the same command again to continue.
"""

from configs import nano

# Samples of a degradation in a round: one for what ends near 18 dB, eight near 27 dB. Squared
# errors are so much smaller there that little is learned about nearly clean pictures otherwise.
SHARES = {
    8: (
        "smartphone-to-dslr",
        "watermark",
        "jpeg-compression",
    ),
    6: (
        "low-resolution+jpeg-compression",
        "watermark+jpeg-compression",
    ),
    5: (
        "snow",
        "defocus-blur",
        "lost_color",
    ),
    4: (
        "rain-streak",
        "motion-blur",
        "noise",
        "rain-streak+jpeg-compression",
        "noise+jpeg-compression",
        "noise+watermark",
    ),
    3: (
        "specular-reflection",
        "low-resolution",
        "defocus-blur+noise",
        "low-resolution+noise+jpeg-compression",
        "specular-reflection+defocus-blur",
        "over-exposure+noise",
        "low-resolution+watermark",
    ),
    2: (
        "low-light",
        "shadow",
        "haze",
        "raindrop",
        "over-exposure",
        "low-light+rain-streak",
        "low-light+snow",
        "low-light+defocus-blur",
        "low-light+motion-blur",
        "low-light+noise",
        "haze+noise",
        "motion-blur+noise",
        "low-resolution+noise",
        "defocus-blur+low-resolution+noise+jpeg-compression",
        "rain-streak+raindrop",
        "low-light+raindrop",
        "snow+raindrop",
        "raindrop+jpeg-compression",
        "shadow+noise",
        "shadow+specular-reflection",
        "shadow+over-exposure",
        "specular-reflection+noise",
        "flare+noise",
        "over-exposure+jpeg-compression",
        "defocus-blur+lost_color",
        "noise+lost_color",
        "lost_color+jpeg-compression",
        "shadow+noise+watermark+jpeg-compression",
    ),
}


def get_config(model: str = "nano"):
    """Returns the config of the release's run."""
    config = nano.get_config(model)
    config.init = "scratch"
    config.data.fresh = True
    config.data.fresh_sizes = (192, 256, 320)
    config.data.shares = tuple((name, n) for n, names in SHARES.items() for name in names)
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
    # At 1e-3 the head's two factors shut within 100 steps, and nothing is learned after.
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 200
    config.train.learning_rate_floor = 1e-6
    config.train.ema_decay = 0.998
    config.log.every = 25
    config.checkpoint.every = 400
    return config
