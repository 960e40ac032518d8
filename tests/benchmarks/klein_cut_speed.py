"""klein-4b at full width, cut to 1 double and 2 single blocks, beside diffusers in PyTorch.

    python tests/benchmarks/klein_cut_speed.py [--side=384] [--dtype=bfloat16]

On this machine's CPU, random weights (the same in both), batch 1, 512 text tokens. Forward:
the velocity of the target rows, no CoT adapter on either side. Training step: mean squared
velocity error, gradients of LoRA (rank 96, every linear of the single blocks and of the final
layer) and AdamW on them, base frozen. Both sides run in turns; figures are medians over the turns.
FLOPs are those of the matrix products, counted below from shapes, of what each side computes. In
bfloat16 (weights and activations on both sides), the forward alone; set
`JAX_DEFAULT_MATMUL_PRECISION=bfloat16` for a CPU with units for it.
"""

import argparse
import os
import statistics
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from cotir_jax.configs import default
from cotir_jax.conversion.fill import fill
from cotir_jax.conversion.names import transformer as names
from cotir_jax.models import flux
from cotir_jax.models.autoencoder import PatchAutoencoder
from cotir_jax.models.presets import CoTIRConfig, preset
from cotir_jax.models.transformer import Text, Transformer, predict
from cotir_jax.text.encoders import Embedded
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import init_state
from cotir_jax.training.step import update


def config_of(dtype: str) -> CoTIRConfig:
    return preset(
        "klein-4b",
        "num_double_blocks=1, num_single_blocks=2, adapter_depth=0, position_dtype='float32', "
        f"remat='none', base_dtype={dtype!r}, dtype={dtype!r}",
    )


class TorchLoRA(torch.nn.Module):
    """A linear with LoRA, biased as the release's."""

    def __init__(self, base: torch.nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.lora_a = torch.nn.Linear(base.in_features, rank, bias=False)
        self.lora_b = torch.nn.Linear(rank, base.out_features)
        torch.nn.init.zeros_(self.lora_b.weight)
        torch.nn.init.zeros_(self.lora_b.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_b(self.lora_a(x))


def torch_model(config: CoTIRConfig) -> diffusers.Flux2Transformer2DModel:
    torch.manual_seed(0)
    return diffusers.Flux2Transformer2DModel(
        in_channels=config.in_channels,
        num_layers=config.num_double_blocks,
        num_single_layers=config.num_single_blocks,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.text_channels,
        mlp_ratio=config.mlp_ratio,
        axes_dims_rope=config.axes_dim,
        rope_theta=config.theta,
        guidance_embeds=False,
    ).requires_grad_(False)


def add_lora(model: diffusers.Flux2Transformer2DModel, rank: int) -> list[torch.nn.Parameter]:
    for block in model.single_transformer_blocks:
        block.attn.to_qkv_mlp_proj = TorchLoRA(block.attn.to_qkv_mlp_proj, rank)
        block.attn.to_out = TorchLoRA(block.attn.to_out, rank)
    model.norm_out.linear = TorchLoRA(model.norm_out.linear, rank)
    model.proj_out = TorchLoRA(model.proj_out, rank)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def forward_flops(config: CoTIRConfig, image: int, text: int, last_rows: int) -> float:
    """Twice the multiply-adds of all matrix products; `last_rows` leave the last block."""
    hidden, mlp = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    rows = image + text
    double = rows * (4 * hidden**2 + 3 * mlp * hidden) + 2 * rows * rows * hidden
    inner = rows * (4 * hidden**2 + 3 * mlp * hidden) + 2 * rows * rows * hidden
    last = (
        rows * 2 * hidden**2
        + last_rows * (2 * hidden**2 + 3 * mlp * hidden)
        + 2 * last_rows * rows * hidden
    )
    ends = image * config.in_channels * hidden + text * config.text_channels * hidden
    ends += last_rows * hidden * config.in_channels
    singles = (config.num_single_blocks - 1) * inner
    return 2.0 * (config.num_double_blocks * double + singles + last + ends)


def in_turns(ours, theirs, turns: int) -> tuple[list[float], list[float]]:
    """Seconds of both sides, in turns, after one unmeasured call each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for call, times in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                times.append(time.perf_counter() - start)
    return seconds


def report(name: str, seconds: tuple[list[float], list[float]], flops: tuple[float, float]) -> None:
    ours, theirs = (statistics.median(times) for times in seconds)
    print(
        f"{name}: cotir_jax {ours:.2f} s ({flops[0] / 1e12:.2f} TFLOP, {flops[0] / ours / 1e9:.0f} "
        f"GFLOP/s), diffusers {theirs:.2f} s ({flops[1] / 1e12:.2f} TFLOP, "
        f"{flops[1] / theirs / 1e9:.0f} GFLOP/s): {theirs / ours:.2f} times faster; spread "
        f"{min(seconds[0]):.2f}-{max(seconds[0]):.2f} and {min(seconds[1]):.2f}-"
        f"{max(seconds[1]):.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=384, help="picture side in pixels")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    config, dtype = config_of(args.dtype), getattr(torch, args.dtype)
    side = args.side // config.patch
    rng = np.random.default_rng(0)
    latents, condition, noise = rng.standard_normal((3, 1, side, side, 128), np.float32)
    prompt = rng.standard_normal((1, config.text_tokens, config.text_channels), np.float32)
    timestep = np.array([0.7], np.float32)

    oracle = torch_model(config)
    model = Transformer(config, rngs=nnx.Rngs(0))
    tensors = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    fill(model, names.diffusers(config), tensors)
    del tensors
    oracle.to(dtype)
    tokens = np.concatenate([latents, condition], axis=1).reshape(1, -1, 128)
    theirs = dict(
        encoder_hidden_states=torch.from_numpy(prompt).to(dtype),
        timestep=torch.from_numpy(timestep),
        img_ids=torch.from_numpy(
            np.concatenate([np.asarray(x) for x in flux.image_position_ids("flux2", side, side)])
        ).float(),
        txt_ids=torch.from_numpy(
            np.asarray(flux.text_position_ids("flux2", config.text_tokens)).copy()
        ).float(),
    )
    graphdef, weights = nnx.split(model)
    run = jax.jit(lambda weights, *args: predict(nnx.merge(graphdef, weights), *args).velocity)

    def ours_forward():
        return run(weights, latents, condition, Text(prompt), timestep).block_until_ready()

    def theirs_forward():
        with torch.no_grad():
            out = oracle(torch.from_numpy(tokens).to(dtype), **theirs).sample
            return out[:, : side * side].float()

    a, b = np.asarray(ours_forward(), np.float32).reshape(1, -1, 128), theirs_forward().numpy()
    print(f"forward: relative error {np.abs(a - b).max() / np.abs(b).max():.1e}")
    threads = torch.get_num_threads()
    print(f"{os.cpu_count()} cores, PyTorch {torch.__version__} on {threads} threads")
    rows = 2 * side * side + config.text_tokens
    print(f"{rows} rows: {side * side} target, as many condition, {config.text_tokens} text")
    flops = (
        forward_flops(config, 2 * side * side, config.text_tokens, side * side),
        forward_flops(config, 2 * side * side, config.text_tokens, rows),
    )
    report("forward", in_turns(ours_forward, theirs_forward, args.turns), flops)
    if args.dtype == "bfloat16":
        return

    trained = add_lora(oracle, config.lora_rank)
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    velocity = torch.from_numpy((noise - latents).reshape(1, -1, 128))
    noisy = (1 - timestep[0]) * latents + timestep[0] * noise
    noisy_tokens = torch.from_numpy(np.concatenate([noisy, condition], axis=1).reshape(1, -1, 128))

    def theirs_step():
        optimizer.zero_grad()
        out = oracle(noisy_tokens, **theirs).sample[:, : side * side]
        loss = torch.nn.functional.mse_loss(out, velocity)
        loss.backward()
        optimizer.step()
        return loss.item()

    settings = TrainSettings.read(default.get_config())._replace(warmup_steps=1)
    frozen, state = init_state(model, PatchAutoencoder(16), settings, seed=0)
    inputs = {
        "latents": latents,
        "condition": condition,
        "noise": noise,
        "timestep": timestep,
        "prompt": Embedded(prompt, None),
        "group": np.zeros(1, np.int32),
    }
    inputs |= {
        name: Embedded(jnp.zeros((1, 1, 1)), None) for name in ("scene", "degradation", "plan")
    }
    step = jax.jit(update)
    losses = []

    def ours_step():
        _, metrics = step(frozen, state, inputs)
        losses.append(float(metrics["velocity_loss"]))

    first = theirs_step()
    ours_step()
    print(f"training step: losses {losses[0]:.6f} and {first:.6f}")
    # Backward: gradients of the activations through what lies behind the first LoRA, so about
    # the single blocks' and final layer's forward again, plus LoRA's own small products.
    cut = [
        forward_flops(config, 2 * side * side, config.text_tokens, last)
        - 2.0 * config.num_double_blocks * rows
        * (4 * config.hidden_size**2 + 9 * config.hidden_size**2 + 2 * rows * config.hidden_size)
        for last in (side * side, rows)
    ]  # fmt: skip
    report(
        "training step",
        in_turns(ours_step, theirs_step, args.turns),
        (flops[0] + cut[0], flops[1] + cut[1]),
    )


if __name__ == "__main__":
    main()
