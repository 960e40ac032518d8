"""Attention on this machine's CPU: `python tests/benchmarks/attention_speed.py`.

Ours, XLA's own program and PyTorch's kernel in float32, in turns; the least of several times, in
milliseconds: one call, three layers in one program (memory is then at hand already), and the
gradients of one call.
"""

import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cotir_jax.models.attention import attention

torch.set_num_threads(os.cpu_count())
SHAPES = {  # batch, tokens, heads, head_dim, turns
    "klein-4b, 512 text and 1024 image rows": (1, 1536, 24, 128, 8),
    "nano, training on 64x64": (24, 176, 6, 32, 20),
    "nano, training on 96x96": (16, 336, 6, 32, 20),
    "nano, restoring 512x512": (1, 2096, 6, 32, 20),
}
LAYERS = 3


def _jax_calls(function, query, key, value):
    def one(query, key, value):
        return function(query, key, value).reshape(query.shape)

    def layers(query, key, value):
        step = lambda x, _: (3 * one(x, key, value) + query, None)  # noqa: E731
        return jax.lax.scan(step, query, length=LAYERS)[0]

    def gradients(*arrays):
        return jax.grad(lambda *a: (one(*a) ** 2).sum(), argnums=(0, 1, 2))(*arrays)

    programs = [jax.jit(f).lower(query, key, value).compile() for f in (one, layers, gradients)]
    return [lambda p=p: jax.block_until_ready(p(query, key, value)) for p in programs]


def _torch_calls(query, key, value):
    kernel = torch.nn.functional.scaled_dot_product_attention
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]

    @torch.no_grad()
    def one():
        return kernel(query, key, value)

    @torch.no_grad()
    def layers():
        x = query
        for _ in range(LAYERS):
            x = 3 * kernel(x, key, value) + query
        return x

    return [one, layers, lambda: torch.autograd.grad((kernel(*leaves) ** 2).sum(), leaves)]


def measure(name: str, batch: int, tokens: int, heads: int, head_dim: int, turns: int) -> None:
    rng = np.random.default_rng(0)
    shape = (batch, tokens, heads, head_dim)
    arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    calls = {
        "ours": _jax_calls(attention, *map(jnp.asarray, arrays)),
        "XLA's own": _jax_calls(jax.nn.dot_product_attention, *map(jnp.asarray, arrays)),
        "PyTorch": _torch_calls(*(torch.from_numpy(a).transpose(1, 2) for a in arrays)),
    }
    best = {who: [float("inf")] * 3 for who in calls}
    for _ in range(turns):
        for who, kinds in calls.items():
            for i, call in enumerate(kinds):
                start = time.perf_counter()
                call()
                best[who][i] = min(best[who][i], time.perf_counter() - start)
    print(f"{name} {shape}")
    for who, (one, layers, gradients) in best.items():
        print(
            f"  {who:10} one call {one * 1e3:7.1f}, {LAYERS} layers {layers * 1e3:7.1f}, "
            f"gradients {gradients * 1e3:7.1f}"
        )


if __name__ == "__main__":
    for name, sizes in SHAPES.items():
        measure(name, *sizes)
