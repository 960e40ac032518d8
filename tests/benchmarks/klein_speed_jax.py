"""Our side of `klein_speed.py`, which starts it; prints a JSON line for each measurement."""

import dataclasses
import functools
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cotir_jax.compiling.program import memory
from cotir_jax.configs import default
from cotir_jax.models import flops, pipeline
from cotir_jax.models.autoencoder import AUTOENCODERS, PatchAutoencoder
from cotir_jax.models.presets import CoTIRConfig, preset
from cotir_jax.models.transformer import Text, Transformer, predict
from cotir_jax.parallel.sharding import RULES, make_mesh, shardings
from cotir_jax.text.encoders import Embedded
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import Frozen, TrainState, init_state
from cotir_jax.training.step import check_finite, train_step, update

# Parts of `flops.training_step`.
TRANSFORMER = ("embed", "double", "adapter", "single", "final")
THOUGHTS = ("scene", "degradation", "plan")


def randomised(weights: nnx.State, key: jax.Array) -> nnx.State:
    """Random matrices in place of those that start at zero.

    Zeros pass zeros on, and products of zeros let a card clock higher than training does.
    """

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if re.search(r"scale_(scene|degradation|plan)", name):
            return jnp.ones_like(leaf)
        if not re.search(r"kernel|lora_[ab]\b", name):
            return leaf
        own = jax.random.fold_in(key, sum((i + 1) * ord(letter) for i, letter in enumerate(name)))
        return jax.random.normal(own, leaf.shape, leaf.dtype) * leaf.shape[-2] ** -0.5

    return jax.tree_util.tree_map_with_path(draw, weights)


@functools.lru_cache
def builder(config: CoTIRConfig, mesh: jax.sharding.Mesh):
    """The compiled program that makes weights and state on the device, and its shardings."""

    def fresh() -> tuple[Frozen, TrainState]:
        # This generator compiles in a fraction of the default's time.
        key = jax.random.key(0, impl="unsafe_rbg")
        rngs = nnx.Rngs(key)
        model = Transformer(config, rngs=rngs)
        graphdef, weights = nnx.split(model)
        model = nnx.merge(graphdef, randomised(weights, key))
        autoencoder = (
            pipeline.make_autoencoder(config, rngs=rngs)
            if config.adapter_depth
            else PatchAutoencoder(config.patch)  # latents are at hand
        )
        settings = TrainSettings.read(default.get_config(config.name))
        return init_state(model, autoencoder, settings, seed=0)

    placement = shardings(jax.eval_shape(fresh), mesh, RULES)
    return jax.jit(fresh, out_shardings=placement), placement


def bare(config: CoTIRConfig) -> CoTIRConfig:
    """Without what diffusers' transformer has not: the adapter (and, in `flops`, encoding)."""
    return dataclasses.replace(config, adapter_depth=0)


def random_batch(config: CoTIRConfig, size: int, batch: int) -> dict[str, jax.Array]:
    """A training batch: pictures, random text embeddings."""
    rng = np.random.default_rng(0)
    shape = (batch, config.text_tokens, config.text_channels)
    pictures = {
        name: jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), np.uint8))
        for name in ("lq", "hq")
    }
    texts = {
        name: Embedded(jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16), None)
        for name in ("prompt", *THOUGHTS)
    }
    return pictures | texts | {"group": jnp.zeros((batch,), jnp.int32)}


def random_latents(config: CoTIRConfig, size: int, batch: int) -> dict[str, jax.Array]:
    """What `train.update` takes for a model without an adapter."""
    rng = np.random.default_rng(0)
    side = size // config.patch
    text = rng.standard_normal((batch, config.text_tokens, config.text_channels), np.float32)
    inputs = {
        name: jnp.asarray(rng.standard_normal((batch, side, side, config.in_channels), np.float32))
        for name in ("latents", "condition", "noise")
    }
    inputs |= {name: Embedded(jnp.zeros((batch, 1, 1)), None) for name in THOUGHTS}
    return inputs | {
        "prompt": Embedded(jnp.asarray(text, jnp.bfloat16), None),
        "timestep": jnp.full((batch,), 0.7),
        "group": jnp.zeros((batch,), jnp.int32),
    }


def measure(call: Callable[[], object], turns: int) -> dict[str, float]:
    """Milliseconds of a call that waits for its result."""
    times = []
    for _ in range(turns + 2):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    times = times[2:]
    return {
        "ms": round(statistics.median(times), 3),
        "least_ms": round(min(times), 3),
        "most_ms": round(max(times), 3),
    }


def compiled(function, *args, **options) -> tuple[jax.stages.Compiled, dict[str, float]]:
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*args).compile()
    used = memory(program)
    return program, {
        "compile_seconds": round(time.perf_counter() - start, 1),
        "memory_gb": round(used.total / 1e9, 3),
    }


def step(config: CoTIRConfig, size: int, batch: int, turns: int, mesh) -> dict:
    """The training step; without an adapter its update alone, from latents."""
    fresh, placement = builder(config, mesh)
    frozen, state = fresh()
    whole = bool(config.adapter_depth)
    function = train_step if whole else update
    inputs = (random_batch if whole else random_latents)(config, size, batch)
    program, cost = compiled(
        function, frozen, state, inputs,
        donate_argnums=1, out_shardings=(placement[1], None),
    )  # fmt: skip
    latest = {"state": state}  # each call gives its state's memory to the next
    del state

    def call() -> None:
        latest["state"], latest["metrics"] = program(frozen, latest["state"], inputs)
        jax.block_until_ready(latest)

    times = measure(call, turns)
    parts = flops.training_step(config, batch, size)
    if not whole:
        parts = {name: parts[name] for name in TRANSFORMER}
    check_finite(jax.device_get(latest["metrics"]), turns)
    return {**times, **cost, "flops": flops.total(parts)}


def restore(config: CoTIRConfig, size: int, batch: int, turns: int, mesh) -> dict:
    """Encoding, sampling and decoding as one program, weights as `restore.Restorer` holds them."""
    fresh, _ = builder(config, mesh)
    frozen, state = fresh()
    weights = jax.tree.map(
        lambda x: x.astype(config.dtype), nnx.merge_state(state.trainable, frozen.transformer)
    )
    weights = weights, frozen.autoencoder
    graphdef, autoencoder = state.graphdef, state.autoencoder
    del frozen, state
    inputs = random_batch(config, size, batch)

    def run(weights, pictures, prompt, key):
        return pipeline.to_uint8(pipeline.restore_range(
            nnx.merge(graphdef, weights[0]), nnx.merge(autoencoder, weights[1]),
            pipeline.to_unit_range(pictures), Text(prompt), key, config.num_steps,
        ))  # fmt: skip

    args = weights, inputs["lq"], inputs["prompt"].embeddings, jax.random.key(0)
    program, cost = compiled(run, *args)
    times = measure(lambda: jax.block_until_ready(program(*args)), turns)
    return {**times, **cost, "flops": restore_flops(config, batch, size)}


def velocity(config: CoTIRConfig, size: int, batch: int, turns: int, mesh) -> dict:
    """One pass of the transformer."""
    fresh, _ = builder(config, mesh)
    frozen, state = fresh()
    weights = jax.tree.map(
        lambda x: x.astype(config.dtype), nnx.merge_state(state.trainable, frozen.transformer)
    )
    graphdef = state.graphdef
    del frozen, state
    inputs = random_latents(config, size, batch)

    def run(weights, latents, condition, prompt, timestep):
        model = nnx.merge(graphdef, weights)
        return predict(model, latents, condition, Text(prompt), timestep).velocity

    prompt = inputs["prompt"].embeddings
    args = weights, inputs["latents"], inputs["condition"], prompt, inputs["timestep"]
    program, cost = compiled(run, *args)
    times = measure(lambda: jax.block_until_ready(program(*args)), turns)
    return {**times, **cost, "flops": pass_flops(config, batch, size)}


def pass_flops(config: CoTIRConfig, batch: int, size: int) -> float:
    """Model FLOPs of one pass of the transformer that predicts no thoughts."""
    parts = flops.training_step(config, batch, size)
    forward = sum(parts[name].forward for name in TRANSFORMER)
    hidden, text = config.hidden_size, config.text_tokens
    heads = 3 * (text * hidden * config.text_channels + 2 * hidden**2)
    return forward - 2 * batch * heads * bool(config.adapter_depth)


def restore_flops(config: CoTIRConfig, batch: int, size: int) -> float:
    """Model FLOPs of encoding once, all sampling steps, and decoding."""
    encoding = flops.training_step(config, batch, size)["autoencoder"].forward / 2
    decoding = 0.0 if config.autoencoder == "patch" else 2 * batch * decoder(config, size)
    return encoding + config.num_steps * pass_flops(config, batch, size) + decoding


def decoder(config: CoTIRConfig, size: int) -> float:
    """Multiplications of the autoencoder's decoder for one picture (diffusers' `Decoder`)."""
    sizes = AUTOENCODERS[config.autoencoder]
    widths = [sizes.channels * multiplier for multiplier in reversed(sizes.multipliers)]
    into, pixels = widths[0], float(size // 2 ** (len(widths) - 1)) ** 2
    latents = sizes.latent_channels
    count = pixels * (9 * latents * into + (latents**2 if sizes.kind == "flux2" else 0))
    count += pixels * (36 * into**2 + 4 * into**2 + 2 * pixels * into)  # the middle
    for level, out in enumerate(widths):
        for _ in range(sizes.num_res_blocks + 1):
            count += pixels * (9 * out * (into + out) + (into * out if into != out else 0))
            into = out
        if level < len(widths) - 1:
            pixels *= 4
            count += pixels * 9 * out * out
    return count + pixels * 9 * into * 3


def first_that_fits(function, config: CoTIRConfig, remats: list[str], *args) -> dict:
    """The measurement with the first remat policy that has room; else why there is none."""
    error = ""
    for remat in remats:
        gc.collect()  # what the row before held on the device
        try:
            return {
                "remat": remat,
                **function(dataclasses.replace(config, remat=remat), *args),
            }
        except Exception as problem:  # whatever one row meets, the others are still wanted
            error = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
            if "RESOURCE_EXHAUSTED" not in error and "ut of memory" not in error:
                break
    return {"remat": "", "error": error}


def main() -> None:
    job = json.loads(sys.argv[1])
    config = preset("klein-4b", job["overrides"])
    device = jax.devices()[0]
    if device.platform == "cpu" and not job["small"]:
        sys.exit("JAX finds no accelerator: run with --small")
    mesh = make_mesh({}, [device])
    steps = job["remat"]
    # One after the other, so that at any time the device holds the weights of one of them.
    with jax.set_mesh(mesh):
        for name, function, sizes, remats, single in (
            ("training step", step, config, steps, False),
            ("restore", restore, config, steps[:1], True),
            ("LoRA step", step, bare(config), steps, False),
            ("velocity", velocity, bare(config), steps[:1], True),
        ):
            for size, step_batch in job["pictures"]:
                batch = 1 if single else step_batch
                row = {"case": name, "size": size, "batch": batch, "device": device.device_kind}
                row |= first_that_fits(function, sizes, remats, size, batch, job["turns"], mesh)
                if single:
                    row["remat"] = ""  # a matter of backward passes
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
