"""Settings of the training step."""

from typing import NamedTuple, Self

from ml_collections import ConfigDict


class TrainSettings(NamedTuple):
    """What a training step needs besides arrays; part of the compiled program.

    The default values are those of `configs/default.py`.

    Attributes:
      learning_rate, warmup_steps, total_steps, learning_rate_floor: linear warm-up from 0, cosine
        to 0 at `total_steps`, never below the floor after step 0.
      optimizer: "adamw" or "muon"; see `make_optimizer`.
      weight_decay, b1, b2, clip_norm: AdamW and the clip of the global gradient norm.
      tolerances: delta of scene, degradation, plan.
      dual_learning_rate: of the multipliers' Adam ascent.
      initial_multiplier: value that all multipliers start from.
      mask_padding: leave padding out of the constraint losses.
      timestep_mean, timestep_std: t = sigmoid(mean + std * N(0, 1)).
      full_noise: probability that a sample trains at t = 1, where one-step sampling starts.
      guidance: value given to models with a guidance embedding.
      accumulate: micro-batches per step.
      ema_decay: of the average of the weights; 0 keeps none.
      trainable: "lora_and_adapter" or "all".
    """

    learning_rate: float
    warmup_steps: int
    total_steps: int
    learning_rate_floor: float
    optimizer: str
    weight_decay: float
    b1: float
    b2: float
    clip_norm: float
    tolerances: tuple[float, float, float]
    dual_learning_rate: float
    initial_multiplier: float
    mask_padding: bool
    timestep_mean: float
    timestep_std: float
    full_noise: float
    guidance: float
    accumulate: int
    ema_decay: float
    trainable: str

    @classmethod
    def read(cls, config: ConfigDict) -> Self:
        """Reads the settings from `config.train` and `config.constraints`."""
        train, constraints = config.train, config.constraints
        same = {name: train[name] for name in cls._fields if name in train}
        return cls(
            **same
            | {
                # A run cut short for a trial still ends its warm-up.
                "warmup_steps": min(train.warmup_steps, train.steps - 1),
                "total_steps": train.steps,
                "tolerances": tuple(constraints.tolerances),
                "dual_learning_rate": constraints.learning_rate,
                "initial_multiplier": constraints.initial,
                "mask_padding": constraints.mask_padding,
            }
        )
