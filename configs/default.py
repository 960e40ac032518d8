"""Every field of a run, with the published recipe as values (docs/design.md, section 5).

    python -m cotir_jax.main --config=default:klein-4b --workdir=RUN --config.init=MODEL_FOLDER

The configs of machines (`gpu`, `tpu_v5e`, ...) override it: start from those, which say what is
known of time and results. Any field can be set on the command line, `--config.train.steps=10`; the
part after a colon picks the model.
"""

import ml_collections

# Batch per device in the four stages, as published (docs/design.md, section 5). How many devices
# the release trained on is not known; this assumes eight.
_BATCH_SIZES = {
    "klein-4b": (12, 10, 6, 4),
    "klein-9b": (6, 4, 2, 1),
    "kontext-12b": (6, 5, 3, 2),
}
_DEVICES = 8


def get_config(model: str = "klein-4b") -> ml_collections.ConfigDict:
    """Returns the defaults for one model preset (`cotir_jax/models/presets.py`)."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # Weights to start from: the path of a model folder (`cotir convert` writes one from published
    # weights), "package" (those that ship with the package), or "scratch".
    config.init = "scratch"

    config.model = ml_collections.ConfigDict()
    config.model.name = model
    # Fields of the preset to replace, as text: "hidden_size=256, remat='dots'".
    config.model.overrides = ""

    # Devices along each axis; -1 takes all that remain.
    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    # Logical axis of a weight -> mesh axis.
    config.sharding_rules = (
        ("embed", "fsdp"),
        ("mlp", "tensor"),
        ("vocab", "tensor"),
        ("layers", None),
    )

    data = config.data = ml_collections.ConfigDict()
    # A CoTIR-Bench folder. Empty: build one from `bench` in the workdir first.
    data.dir = ""
    # Make every training sample from `bench` when it is read, so that none comes twice; `dir`, or
    # what is built in its place, is then used only for validation and test.
    data.fresh = False
    # Sides in pixels of fresh samples before they are cropped, in turn; empty: `bench.size`.
    data.fresh_sizes = ()
    # Probability that a fresh sample shows its photo in other colours.
    data.recoloured = 0.0
    # Probability that it shows a page (slide, chart, cartoon) drawn around its photo.
    data.drawn = 0.0
    # (degradation, samples in a round) pairs; one for what is not named. The loss is a mean of
    # squared errors, so the hardest degradations outweigh the rest, where shares are equal.
    data.shares = ()
    # Probability of a sample's vague prompt, from a step on.
    data.vague = ((0, 0.2), (10_000, 0.3), (20_000, 0.4), (30_000, 0.5), (40_000, 0.6))
    # Worker processes that decode; 0 decodes in threads of this process.
    data.workers = 8
    data.threads = 8
    # Samples of each degradation that are kept from training and used to choose the best
    # checkpoint. The test split is never looked at while training.
    data.validation = 1
    # Memory for embeddings of repeated texts, in GB (10^9 bytes). One text takes 7.9 MB with
    # klein-4b and 37 KB with nano.
    data.text_cache_gb = 64.0

    bench = config.bench = ml_collections.ConfigDict()
    # Folder of clean photos; empty: the photographs inside scikit-image.
    bench.photos = ""
    # Folder of photos for the test split; empty: some of `photos`.
    bench.test_photos = ""
    bench.samples_per_degradation = 1000
    bench.test_per_degradation = 10
    bench.size = 512
    # Degradations, composites and sets of them: all, quick (the nano job's), singles, seen, unseen.
    bench.degradations = "all"
    bench.composites = True
    # Maps from files (folders; empty: none): nearness of the photos, masks of rain and of snow.
    bench.depth = ""
    bench.rain_masks = ""
    bench.snow_masks = ""
    bench.seed = 0
    bench.workers = 0  # 0: all cores

    train = config.train = ml_collections.ConfigDict()
    # What trains: "lora_and_adapter" (published models) or "all" (a model without a base).
    train.trainable = "lora_and_adapter"
    # Steps of the whole run, and its cosine.
    train.steps = 120_001
    # (last step, patch size in pixels, global batch size), one stage after the other.
    published = model.replace("-base", "").removesuffix("-kv")
    batch_sizes = _BATCH_SIZES.get(published, _BATCH_SIZES["klein-4b"])
    train.stages = tuple(
        (last, patch, batch * _DEVICES)
        for last, patch, batch in zip(
            (20_000, 40_000, 60_000, 120_001), (128, 256, 384, 512), batch_sizes, strict=True
        )
    )
    train.learning_rate = 5e-4
    train.warmup_steps = 2000
    train.learning_rate_floor = 5e-5
    # "adamw", as published, or "muon", whose steps cost more and lower nano's loss more.
    train.optimizer = "adamw"
    train.weight_decay = 0.01
    train.b1 = 0.9
    train.b2 = 0.999
    train.clip_norm = 1.0
    # Text embeddings: "ahead" encodes each text once and keeps it in host memory, for data whose
    # texts repeat; "in_step" encodes the batch's texts as part of the step, each device its own
    # part, for data where nearly every text is new.
    train.text_encoders = "ahead"
    # Micro-batches per step: the memory of one, the gradient of all.
    train.accumulate = 1
    # Decay of an average of the weights that validation and the result use; 0: none.
    train.ema_decay = 0.0
    # t = sigmoid(mean + std * N(0, 1)); a share of samples at t = 1 for one-step sampling.
    train.timestep_mean = 0.0
    train.timestep_std = 1.0
    train.full_noise = 0.0
    train.guidance = 4.0

    constraints = config.constraints = ml_collections.ConfigDict()
    # delta of scene, degradation, plan.
    constraints.tolerances = (1e-4, 1e-4, 1e-4)
    constraints.learning_rate = 1e-4
    # Multipliers at the start; with learning rate 0 they are fixed weights of the losses.
    constraints.initial = 0.0
    # A multiplier for each degradation instead of one for all.
    constraints.per_degradation = False
    # Leave padding tokens out of the constraint losses.
    constraints.mask_padding = False

    log = config.log = ml_collections.ConfigDict()
    # Steps between lines of metrics; each line is the mean since the one before.
    log.every = 100
    # Pictures lq | restored | hq shown at every validation.
    log.pictures = 8

    profile = config.profile = ml_collections.ConfigDict()
    # Step after which a trace for TensorBoard's profile page begins, in workdir/profile; 0: none.
    profile.at = 0
    # Steps in the trace.
    profile.steps = 3

    checkpoint = config.checkpoint = ml_collections.ConfigDict()
    # Steps between checkpoints; each is validated on the held-out samples.
    checkpoint.every = 2000
    # Latest checkpoints to keep, besides the best one.
    checkpoint.keep = 3

    evaluate = config.evaluate = ml_collections.ConfigDict()
    # Restore the test split at the end and score it.
    evaluate.enabled = False
    # "precise" or "vague" prompts of the test split.
    evaluate.prompts = "precise"
    return config
