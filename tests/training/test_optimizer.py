"""Which weights Muon moves, and how: NumPy's singular values and Optax's AdamW are the oracles."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from cotir_jax.configs import default
from cotir_jax.models import presets
from cotir_jax.models.autoencoder import PatchAutoencoder
from cotir_jax.models.flux import Transformer
from cotir_jax.training.optimizer import learning_rate, make_optimizer
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import init_state

CONFIG = presets.preset("nano", "hidden_size=96, num_heads=3, text_tokens=8")
SETTINGS = TrainSettings.read(default.get_config("nano"))._replace(
    learning_rate=1e-2, warmup_steps=1, total_steps=10, learning_rate_floor=1e-2, weight_decay=0.0,
    clip_norm=1e9, optimizer="muon", trainable="all",
)  # fmt: skip


KERNELS = (
    ("img_in", "kernel"),
    ("detail", "conv_in", "kernel"),
    ("detail", "sharp_out", "kernel"),
    ("single_blocks", "linear1", "kernel"),
)
OTHERS = (("detail", "gates", "kernel"), ("detail", "conv_in", "bias"))


@pytest.fixture(scope="module")
def weights():
    """A few of the model's, by their paths."""

    def fresh():
        model = Transformer(CONFIG, rngs=nnx.Rngs(0))
        return init_state(model, PatchAutoencoder(CONFIG.patch), SETTINGS, seed=0)

    trainable = jax.eval_shape(fresh)[1].trainable
    keys = nnx.Rngs(0)
    return {
        path: jax.random.normal(keys(), _at(trainable, path).shape) for path in KERNELS + OTHERS
    }


def _at(tree, path):
    for part in path:
        tree = tree[part]
    return tree


@pytest.fixture(scope="module")
def steps(weights):
    """Gradients of two steps and the updates of both."""
    optimizer = make_optimizer(SETTINGS)
    state = optimizer.init(weights)
    update = jax.jit(optimizer.update)
    gradients, updates = [], []
    for seed in range(2):
        keys = nnx.Rngs(seed + 1)
        gradients.append({path: jax.random.normal(keys(), w.shape) for path, w in weights.items()})
        out, state = update(gradients[-1], state, weights)
        updates.append(out)
    return gradients, updates


@pytest.mark.parametrize("path", KERNELS, ids=".".join)
def test_muon_makes_the_momentum_of_kernels_orthogonal(weights, steps, path):
    gradients, updates = steps
    momentum = np.zeros(weights[path].shape)
    # The learning rate is 0 at the first step. Nesterov: the gradient once more, debiased.
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * np.asarray(gradient[path])
    mixed = 0.95 * momentum / (1 - 0.95**3) + 0.05 * np.asarray(gradients[1][path]) / (1 - 0.95**2)
    update = np.asarray(updates[1][path])
    layers = len(update) if update.ndim == 3 else 1
    shape = (layers, -1, update.shape[-1])
    for move, wanted in zip(update.reshape(shape), mixed.reshape(shape), strict=True):
        left, _, right = np.linalg.svd(wanted, full_matrices=False)
        size = 0.2 * SETTINGS.learning_rate * np.sqrt(max(move.shape))
        singular = np.linalg.svd(move, compute_uv=False) / size
        # Newton-Schulz ends near 1, not at it.
        assert singular.min() > 0.5 and singular.max() < 1.5
        alike = -(move * (left @ right)).sum() / np.linalg.norm(move) / np.linalg.norm(left @ right)
        assert alike > 0.97


@pytest.mark.parametrize("path", OTHERS, ids=".".join)
def test_all_other_weights_stay_with_adamw(weights, steps, path):
    gradients, updates = steps
    adam = optax.adamw(
        learning_rate(SETTINGS), SETTINGS.b1, SETTINGS.b2, weight_decay=0.0, nesterov=True
    )
    state = adam.init(np.asarray(weights[path]))
    for gradient in gradients:
        expected, state = adam.update(np.asarray(gradient[path]), state, np.asarray(weights[path]))
    np.testing.assert_allclose(np.asarray(updates[1][path]), expected, rtol=1e-4, atol=1e-8)
