"""Trains the nano that ships: from nothing, on photos of BSDS500.

    launch/nano_release.sh PHOTOS TEST_PHOTOS OUT --config.data.workers=15

trains with this config, chooses the floors of the head (`models/nano_head.py`) and calibrates
explanations; the same command again continues. All degradations and composites; every sample is
made when it is read, so that none comes twice. Training took 13 minutes on one H200 with 16 CPU
cores (set `data.workers` to one fewer than cores); on two CPU cores it takes days. Result on 385
pictures of Set5 and Set14 with precise prompts: PSNR 18.12 -> 23.04 dB, SSIM 0.646 -> 0.784.
"""

from cotir_jax.configs import nano

# Samples of a degradation in a round: the inverse of the squared error that remains on validation
# pictures, because the loss of a nearly clean picture is so small that little is learned about it
# otherwise. There are more for degradations where results lost structure (SSIM).
SHARES = {
    24: ("watermark",),
    20: ("specular-reflection",),
    16: (
        "jpeg-compression",
        "raindrop",
        "lost_color",
    ),
    12: ("shadow",),
    10: (
        "snow",
        "defocus-blur",
        "watermark+jpeg-compression",
    ),
    9: ("smartphone-to-dslr",),
    8: (
        "flare",
        "motion-blur",
        "noise",
    ),
    7: ("low-resolution+jpeg-compression",),
    6: (
        "noise+jpeg-compression",
        "raindrop+jpeg-compression",
        "low-resolution+watermark",
        "noise+watermark",
    ),
    5: (
        "low-resolution",
        "rain-streak+jpeg-compression",
        "low-resolution+noise+jpeg-compression",
        "defocus-blur+lost_color",
    ),
    4: (
        "haze",
        "low-light+rain-streak",
        "defocus-blur+noise",
        "low-resolution+noise",
    ),
    3: (
        "low-light",
        "rain-streak",
        "low-light+snow",
        "low-light+defocus-blur",
        "low-light+motion-blur",
        "haze+snow",
        "defocus-blur+low-resolution+noise+jpeg-compression",
        "raindrop+defocus-blur",
        "rain-streak+raindrop",
        "snow+raindrop",
        "shadow+specular-reflection",
        "specular-reflection+defocus-blur",
        "over-exposure+noise",
        "lost_color+jpeg-compression",
        "shadow+noise+watermark+jpeg-compression",
    ),
    2: (
        "underwater",
        "over-exposure",
        "low-light+noise",
        "haze+rain-streak",
        "haze+noise",
        "motion-blur+noise",
        "low-light+motion-blur+noise",
        "haze+motion-blur+jpeg-compression",
        "low-light+haze+rain-streak+jpeg-compression",
        "low-light+raindrop",
        "underwater+defocus-blur",
        "shadow+noise",
        "shadow+over-exposure",
        "specular-reflection+noise",
        "flare+defocus-blur",
        "flare+noise",
        "flare+over-exposure",
        "over-exposure+jpeg-compression",
        "noise+lost_color",
    ),
}
STEPS = 5500


def get_config(model: str = "nano"):
    """Returns the config of the release's run."""
    config = nano.get_config(model)
    config.init = "scratch"
    config.data.fresh = True
    config.data.fresh_sizes = (256, 320)
    config.data.recoloured = 0.6
    config.data.drawn = 0.15
    config.data.shares = tuple((name, n) for n, names in SHARES.items() for name in names)
    config.data.workers = 1
    config.data.threads = 1
    # Nearly every thought is new.
    config.train.text_encoders = "in_step"
    config.bench.degradations = "all"
    config.bench.size = 256
    # Nothing reads the pictures that are built: training samples are fresh, and the release is
    # scored by `cotir restore` and `cotir evaluate`.
    config.bench.samples_per_degradation = 1
    config.bench.test_per_degradation = 0
    config.data.validation = 0
    config.evaluate.enabled = False
    config.log.every = 10
    config.train.learning_rate_floor = 1e-6
    config.train.steps = STEPS
    # Crops of the size that nano restores in: it judges light and haze by the complete window.
    config.train.stages = ((STEPS, 256, 32),)
    # On the same samples its loss was 13 % below AdamW's.
    config.train.optimizer = "muon"
    config.train.learning_rate = 8e-4
    config.train.warmup_steps = 200
    config.train.ema_decay = 0.998
    # By the ascent only (3e-4 a step) they would reach one in the middle of the run.
    config.constraints.initial = 2.0
    config.checkpoint.every = 500
    return config
