"""The optimizer of the weights and its learning-rate schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx

from cotir_jax.training.settings import TrainSettings


def learning_rate(settings: TrainSettings) -> optax.Schedule:
    """Returns the published schedule (docs/design.md, section 5).

    Linear warm-up from 0, then a cosine to 0, and at least the floor after step 0.
    """
    cosine = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup_steps, settings.total_steps
    )

    def schedule(step: jax.Array) -> jax.Array:
        floor = jnp.where(step > 0, settings.learning_rate_floor, 0.0)
        return jnp.maximum(cosine(step), floor)

    return schedule


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW on the schedule of `learning_rate`, or Muon on the same.

    Muon (Jordan et al., 2024) makes the momentum of each matrix orthogonal; its steps are scaled to
    the size of AdamW's (arXiv 2502.16982), so that learning rates carry over. Only kernels train
    with it, those of convolutions as matrices of `[height * width * in, out]`; all other weights,
    LoRA's too, and kernels of a few columns stay with AdamW (Nesterov's, as Optax has it there).
    """
    decay = settings.weight_decay
    rates = dict(learning_rate=learning_rate(settings), eps=1e-8, weight_decay=decay)
    if settings.optimizer == "adamw":
        step = optax.adamw(b1=settings.b1, b2=settings.b2, **rates)
    else:
        step = optax.contrib.muon(
            **rates,
            # Four Newton-Schulz steps do what five do without (arXiv 2512.04632).
            preconditioning="aol",
            ns_steps=4,
            consistent_rms=0.2,
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), step)


def _matrices(weights: nnx.State) -> Any:
    """How Muon sees each weight as a matrix; None: not at all."""

    def axes(path: tuple[Any, ...], weight: jax.Array) -> Any:
        if "kernel" not in jax.tree_util.keystr(path) or weight.shape[-1] < 12:
            return None
        stacked = weight.ndim == 3  # over the layers of a scan
        into = range(int(stacked), weight.ndim - 1)
        return optax.contrib.MuonDimensionNumbers(tuple(into), weight.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, weights)
