"""Sampling schedules of both families, and Euler integration as one scan.

The schedules are in docs/design.md, section 6.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def schedule(family: str, num_steps: int, num_tokens: int) -> np.ndarray:
    """Timesteps from 1 to 0, shifted by exp(mu), where mu depends on the picture's size.

    FLUX.1: mu is linear in tokens, 256 -> 0.5, 4096 -> 1.15. FLUX.2: mu is fitted to tokens at 10
    and at 200 steps, and linear between and beyond; above 4,300 tokens only the fit for 200 steps
    holds. Its coefficients are those of black-forest-labs/flux2 (`sampling.py`).

    Args:
      family: "flux1" or "flux2".
      num_steps: sampling steps, at least 1.
      num_tokens: target image tokens.

    Returns:
      `[num_steps + 1]`, float32, decreasing.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: at least one sampling step is needed")
    mu_200 = 0.00016927 * num_tokens + 0.45666666
    mu_10 = 8.73809524e-05 * num_tokens + 1.89833333
    if family == "flux1":
        mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (num_tokens - 256)
    elif num_tokens > 4300:
        mu = mu_200
    else:
        slope = (mu_200 - mu_10) / 190.0
        mu = slope * num_steps + (mu_200 - 200.0 * slope)
    timesteps = np.linspace(1, 0, num_steps + 1, dtype=np.float32).astype(np.float64)
    shift = math.exp(mu)
    with np.errstate(divide="ignore"):
        shifted = shift / (shift + (1.0 / timesteps - 1.0))
    return shifted.astype(np.float32)


def euler(
    velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, schedule: jax.Array
) -> jax.Array:
    """Integrates `dx/dt = velocity(x, t)` down the schedule with Euler steps, as a scan.

    Args:
      velocity: called with latents `[batch, ...]` and timestep `[batch]`.
      noise: starting latents at `schedule[0]`, `[batch, ...]`.
      schedule: `[num_steps + 1]`, decreasing.

    Returns:
      Latents at `schedule[-1]`, shape of `noise`, float32.
    """
    schedule = jnp.asarray(schedule, jnp.float32)

    def step(latents: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, after = times
        direction = velocity(latents, jnp.broadcast_to(now, latents.shape[:1]))
        return latents + (after - now) * direction.astype(jnp.float32), None

    return jax.lax.scan(step, noise.astype(jnp.float32), (schedule[:-1], schedule[1:]))[0]
