"""The objective against PyTorch, finite differences and hand-solved problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotir_jax.training import objective


def _thoughts(seed, shape=(2, 5, 8)):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for _ in objective.THOUGHTS)


def test_constraint_losses_match_torch():
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    predicted, written = _thoughts(0), _thoughts(1)
    ours = objective.constraint_losses(predicted, written)
    for index in range(3):
        a, b = (
            functional.normalize(torch.from_numpy(x[index]), dim=-1, eps=1e-6)
            for x in (predicted, written)
        )
        np.testing.assert_allclose(
            ours[:, index].mean(), functional.mse_loss(a, b).item(), rtol=1e-6
        )


def test_mask_leaves_padding_out():
    predicted, written = _thoughts(0), _thoughts(1)
    masks = tuple(np.array([[1, 1, 1, 0, 0]] * 2, bool) for _ in range(3))
    ours = objective.constraint_losses(predicted, written, masks)
    cut = objective.constraint_losses(
        tuple(x[:, :3] for x in predicted), tuple(x[:, :3] for x in written)
    )
    np.testing.assert_allclose(ours, cut, rtol=1e-6)


def test_velocity_is_the_derivative_of_the_path():
    latents, noise = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    early, late = (objective.noisy_latents(latents, noise, jnp.full((3,), t)) for t in (0.25, 0.75))
    slope = (late - early) / 0.5
    assert objective.velocity_loss(slope, noise, latents) < 1e-10
    assert objective.velocity_loss(slope + 1.0, noise, latents) == pytest.approx(1.0, rel=1e-5)


def test_lagrangian_gradient_against_finite_differences():
    """Gradient flows through predicted thoughts, with the weight lambda, and not to lambda."""
    with jax.enable_x64(True):
        written = tuple(x.astype(np.float64) for x in _thoughts(1, (2, 3, 4)))
        start = np.stack(_thoughts(0, (2, 3, 4))).astype(np.float64)
        multipliers = jnp.array([[0.5, 2.0, 0.0]])
        delta = jnp.full((3,), 0.01)

        def value(x, multipliers=multipliers):
            losses = objective.constraint_losses(tuple(x), written)
            violation, share = objective.violations(losses, delta, jnp.zeros(2, int), 1)
            return objective.lagrangian(jnp.square(x).mean(), violation, share, multipliers)

        gradient = jax.grad(value)(start)
        direction = np.random.default_rng(3).normal(size=start.shape)
        step = 1e-3  # the losses are computed in float32
        numeric = (value(start + step * direction) - value(start - step * direction)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-3)
        assert not jnp.any(jax.grad(value, argnums=1)(start, multipliers))
        # The plan's multiplier is zero, so only the objective reaches it.
        np.testing.assert_allclose(gradient[2], 2 * start[2] / start.size, rtol=1e-5)


def test_dual_ascent_solves_a_small_constrained_problem():
    """min x^2 + y^2 subject to 1 - x <= 0 and -5 - y <= 0: x = 1, lambda = (2, 0)."""
    dual = objective.dual_ascent(1e-2)
    point, multipliers = jnp.array([3.0, 2.0]), jnp.zeros((1, 2))
    state = dual.init(multipliers)

    def step(carry, _):
        point, multipliers, state = carry
        violation = jnp.array([[1.0 - point[0], -5.0 - point[1]]])
        gradient = 2 * point - multipliers[0]
        multipliers, state = objective.dual_step(dual, violation, state, multipliers)
        return (point - 0.02 * gradient, multipliers, state), multipliers

    (point, multipliers, _), history = jax.lax.scan(
        step, (point, multipliers, state), length=20_000
    )
    np.testing.assert_allclose(point, [1.0, 0.0], atol=2e-2)
    np.testing.assert_allclose(multipliers[0], [2.0, 0.0], atol=2e-2)
    assert history.min() >= 0


def test_groups_have_their_own_violations():
    losses = jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [10.0, 10.0, 10.0]])
    violation, share = objective.violations(losses, jnp.zeros(3), jnp.array([0, 0, 2]), 4)
    np.testing.assert_allclose(violation[0], [2.0, 3.0, 4.0])
    np.testing.assert_allclose(violation[2], 10.0)
    np.testing.assert_allclose(violation[jnp.array([1, 3])], 0.0)
    np.testing.assert_allclose(share, [2 / 3, 0, 1 / 3, 0])
    # Equal multipliers give the one-group Lagrangian.
    one, all_of_it = objective.violations(losses, jnp.zeros(3), jnp.zeros(3, int), 1)
    by_group = objective.lagrangian(jnp.float32(0), violation, share, jnp.full((4, 3), 0.7))
    together = objective.lagrangian(jnp.float32(0), one, all_of_it, jnp.full((1, 3), 0.7))
    assert by_group == pytest.approx(float(together), rel=1e-6)


def test_shape_errors_say_what_came():
    with pytest.raises(ValueError, match="do not fit"):
        objective.noisy_latents(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros(2))
    with pytest.raises(ValueError, match="differ in shape"):
        objective.constraint_losses((jnp.zeros((1, 2, 3)),), (jnp.zeros((1, 2, 4)),))
