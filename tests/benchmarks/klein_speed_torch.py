"""Diffusers' side of `klein_speed.py`, which starts it; prints a JSON line for each measurement."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn
from torch.nn import functional

from cotir_jax.models import flops
from cotir_jax.models.presets import CoTIRConfig, preset


class LoRA(nn.Module):
    """A frozen linear with LoRA, biased as the release's; float32 copies train, as in ours."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        rank = min(rank, base.in_features, base.out_features)
        options: dict[str, Any] = dict(device=base.weight.device, dtype=torch.float32)
        # Nothing at zero: products of zeros let a card clock higher than training does.
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features, **options))
        self.lora_b = nn.Parameter(torch.randn(base.out_features, rank, **options))
        self.bias = nn.Parameter(torch.zeros(base.out_features, **options))
        with torch.no_grad():
            self.lora_a *= base.in_features**-0.5
            self.lora_b *= rank**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.linear(x, self.lora_a.to(x.dtype))
        high = functional.linear(low, self.lora_b.to(x.dtype), self.bias.to(x.dtype))
        return self.base(x) + high


def make_model(config: CoTIRConfig, device: torch.device) -> diffusers.Flux2Transformer2DModel:
    """Random bfloat16 weights made on the device; LoRA on single blocks and final layer."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = diffusers.Flux2Transformer2DModel(
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
    torch.set_default_dtype(torch.float32)
    for block in model.single_transformer_blocks:
        block.attn.to_qkv_mlp_proj = LoRA(block.attn.to_qkv_mlp_proj, config.lora_rank)
        block.attn.to_out = LoRA(block.attn.to_out, config.lora_rank)
    model.norm_out.linear = LoRA(model.norm_out.linear, config.lora_rank)
    model.proj_out = LoRA(model.proj_out, config.lora_rank)
    return model


def random_inputs(
    config: CoTIRConfig, size: int, batch: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Arguments of the transformer: target and condition rows, text rows, position ids."""
    side = size // config.patch
    options: dict[str, Any] = dict(device=device, dtype=torch.bfloat16)
    axis = torch.arange(side, dtype=torch.float32, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    zero = torch.zeros_like(y)
    ids = [torch.stack([zero + time, y, x, zero], -1).reshape(-1, 4) for time in (0, 10)]
    text_ids = torch.zeros(config.text_tokens, 4, device=device)
    text_ids[:, 3] = torch.arange(config.text_tokens, device=device)
    return dict(
        hidden_states=torch.randn(batch, 2 * side * side, config.in_channels, **options),
        encoder_hidden_states=torch.randn(
            batch, config.text_tokens, config.text_channels, **options
        ),
        timestep=torch.full((batch,), 0.7, device=device),
        img_ids=torch.cat(ids),
        txt_ids=text_ids,
    )


def measure(call: Callable[[], object], turns: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a call and all that it started on the device; the allocator's peak."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(turns + 2):
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    first, times = times[0], times[2:]
    return {
        "ms": round(statistics.median(times), 3),
        "least_ms": round(min(times), 3),
        "most_ms": round(max(times), 3),
        "compile_seconds": round(first / 1e3, 1),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if cuda else 0.0,
    }


def velocity(model, config: CoTIRConfig, size: int, batch: int, turns: int, device) -> dict:
    """One pass."""
    inputs = random_inputs(config, size, batch, device)

    @torch.no_grad()
    def call() -> torch.Tensor:
        return model(**inputs, return_dict=False)[0]

    work = flops.training_step(config, batch, size)
    return measure(call, turns, device) | {"flops": sum(part.forward for part in work.values())}


def lora_step(model, config: CoTIRConfig, size: int, batch: int, turns: int, device) -> dict:
    """Mean squared velocity error of the target rows, gradients, clip, AdamW."""
    inputs = random_inputs(config, size, batch, device)
    target = (size // config.patch) ** 2
    wanted = torch.randn(batch, target, config.in_channels, device=device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device.type == "cuda")

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(**inputs, return_dict=False)[0][:, :target]
        functional.mse_loss(out.float(), wanted).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    try:
        times = measure(call, turns, device)
    finally:
        optimizer.zero_grad(set_to_none=True)
    return times | {"flops": flops.total(flops.training_step(config, batch, size))}


def first_that_fits(function, model, remats: list[str], *args) -> dict:
    """The measurement without gradient checkpointing where that has room, else with it."""
    error = ""
    for remat in remats:
        model.enable_gradient_checkpointing()
        if remat == "none":
            model.disable_gradient_checkpointing()
        try:
            return {"remat": remat, **function(model, *args)}
        except Exception as problem:  # whatever one row meets, the others are still wanted
            error = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        # Out of the handler, which would hold on to the frames' tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if "ut of memory" not in error:
            break
    return {"remat": "", "error": error}


def transformer_alone(overrides: str) -> CoTIRConfig:
    """klein-4b without the rest, in the count of FLOPs too: a "patch" autoencoder needs none."""
    parts = [overrides, "adapter_depth=0", "autoencoder='patch'"]
    return preset("klein-4b", ", ".join(part for part in parts if part))


def main() -> None:
    job = json.loads(sys.argv[1])
    config = transformer_alone(job["overrides"])
    cuda = torch.cuda.is_available()
    if not cuda and not job["small"]:
        sys.exit("PyTorch finds no CUDA device: run with --small")
    device = torch.device("cuda" if cuda else "cpu")
    kind = torch.cuda.get_device_name() if cuda else "cpu"
    model = make_model(config, device)
    steps = [remat for remat in job["remat"] if remat in ("none", "full")] or ["full"]
    for compiled in (False, True) if cuda else (False,):
        if compiled:
            torch._dynamo.config.recompile_limit = 64
            model.compile_repeated_blocks(dynamic=False)
        for name, function, remats in (
            ("LoRA step", lora_step, steps), ("velocity", velocity, ["none"]),
        ):  # fmt: skip
            for size, step_batch in job["pictures"]:
                batch = 1 if name == "velocity" else step_batch
                row = {"case": name, "size": size, "batch": batch, "device": kind}
                if compiled:
                    row["side"] = "diffusers, compiled"
                args = config, size, batch, job["turns"], device
                row |= first_that_fits(function, model, remats, *args)
                if name == "velocity":
                    row["remat"] = ""
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
