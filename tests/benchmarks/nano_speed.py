"""Nano's training step and restore on this machine: `python tests/benchmarks/nano_speed.py`.

Training: samples per second of the jitted step alone, text embeddings and data ready, median of
five. Restore: seconds for a 512x512 picture, nine crops, and one of 256x256, one crop, through
`Restorer`, compiled, median of five in turns: crops as they come by default (one by one on a CPU),
and in calls of four.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cotir_jax.configs import nano
from cotir_jax.models import presets
from cotir_jax.models.pipeline import make_autoencoder
from cotir_jax.models.transformer import Transformer
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.text.encoders import Embedded
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import init_state
from cotir_jax.training.step import train_step


def training(batch_size: int, patch: int) -> None:
    config = presets.preset("nano")
    settings = TrainSettings.read(nano.get_config())
    frozen, state = jax.jit(
        lambda: init_state(
            Transformer(config, rngs=(rngs := nnx.Rngs(0))),
            make_autoencoder(config, rngs=rngs),
            settings,
            seed=0,
        )
    )()
    rng = np.random.default_rng(0)
    size = (batch_size, patch, patch, 3)
    batch = {name: rng.integers(0, 256, size, np.uint8) for name in ("lq", "hq")}
    text = (batch_size, config.text_tokens, config.text_channels)
    for name in ("prompt", "scene", "degradation", "plan"):
        batch[name] = Embedded(rng.normal(size=text).astype(jnp.bfloat16), None)
    batch["group"] = np.zeros(batch_size, np.int32)
    step = jax.jit(train_step, donate_argnums=1).lower(frozen, state, batch).compile()
    flops = step.cost_analysis()["flops"]
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        state, metrics = step(frozen, state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    print(
        f"train batch {batch_size} patch {patch}: {batch_size / median:.1f} samples/s, "
        f"{flops / 1e9:.0f} GFLOP a step (XLA's count), {flops / median / 1e9:.0f} GFLOP/s"
    )


def restoring(restorer: Restorer, side: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    tiles = {"default": None, "calls of four": 320}
    seconds: dict[str, list[float]] = {name: [] for name in tiles}
    for _ in range(6):
        for name, tile in tiles.items():
            start = time.perf_counter()
            restorer(picture, tile=tile)
            seconds[name].append(time.perf_counter() - start)
    for name, (first, *others) in seconds.items():
        median = statistics.median(others)
        print(
            f"restore {side}x{side}, {name}: {median:.2f} s (first, with compiling: {first:.1f} s)"
        )


if __name__ == "__main__":
    training(8, 128)
    training(8, 192)
    nano = Restorer.load("nano")
    restoring(nano, 512)
    restoring(nano, 256)
