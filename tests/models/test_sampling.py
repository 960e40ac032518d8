"""Euler sampling on fields with a known answer; schedules are held to golden values elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotir_jax.models import sampling


@pytest.mark.parametrize("family", ["flux1", "flux2"])
@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_schedule_falls_from_one_to_zero(family, num_steps):
    times = sampling.schedule(family, num_steps, 1024)
    assert times[0] == pytest.approx(1.0, abs=1e-6) and times[-1] == 0.0
    assert len(times) == num_steps + 1 and np.all(np.diff(times) < 0)


def test_straight_paths_are_exact_in_any_number_of_steps():
    """The velocity x0 - x1 is constant along a path, so Euler lands on x1."""
    clean, noise = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    for num_steps in (1, 3, 7):
        out = sampling.euler(
            lambda x, t: noise - clean, noise, sampling.schedule("flux2", num_steps, 64)
        )
        np.testing.assert_allclose(out, clean, atol=1e-5)


def test_linear_field_against_the_product_formula():
    """For dx/dt = a x every Euler step multiplies by 1 + a dt."""
    times = sampling.schedule("flux2", 6, 256)
    out = jax.jit(lambda x: sampling.euler(lambda x, t: 0.5 * x, x, times))(jnp.ones((2, 3)))
    np.testing.assert_allclose(out, np.prod(1 + 0.5 * np.diff(times)), rtol=1e-5)


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="num_steps=0"):
        sampling.schedule("flux2", 0, 64)
