"""Settings of the training step."""

from __future__ import annotations

from typing import NamedTuple


class TrainSettings(NamedTuple):
    """What a training step needs beside arrays; part of the compiled program.

    Attributes:
      learning_rate, warmup_steps, total_steps, learning_rate_floor: linear warm-up from 0, cosine
        to 0 at `total_steps`, never below the floor after step 0.
      optimizer: "adamw" or "muon"; see `make_optimizer`.
      weight_decay, b1, b2, clip_norm: AdamW and the clip of the global gradient norm.
      tolerances: delta of scene, degradation, plan.
      dual_learning_rate: of the multipliers' Adam ascent.
      initial_multiplier: value that all multipliers start from.
      multiplier_groups: 1, or the number of degradations for a multiplier each.
      mask_padding: leave padding out of the constraint losses.
      timestep_mean, timestep_std: t = sigmoid(mean + std * N(0, 1)).
      full_noise: probability that a sample trains at t = 1, where one-step sampling starts.
      guidance: value given to models with a guidance embedding.
      accumulate: micro-batches per step.
      ema_decay: of the average of the weights; 0 keeps none.
      trainable: "lora_and_adapter" or "all".
    """

    learning_rate: float = 5e-4
    warmup_steps: int = 2000
    total_steps: int = 120_001
    learning_rate_floor: float = 5e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    tolerances: tuple[float, float, float] = (1e-4, 1e-4, 1e-4)
    dual_learning_rate: float = 1e-4
    initial_multiplier: float = 0.0
    multiplier_groups: int = 1
    mask_padding: bool = False
    timestep_mean: float = 0.0
    timestep_std: float = 1.0
    full_noise: float = 0.0
    guidance: float = 4.0
    accumulate: int = 1
    ema_decay: float = 0.0
    trainable: str = "lora_and_adapter"
