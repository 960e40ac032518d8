"""Linear layers with optional LoRA, and the variable types that say what trains."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cotir_jax.models import products
from cotir_jax.models.presets import CoTIRConfig


class AdapterParam(nnx.Param):
    """A weight of the CoT adapter."""


# What the published models train: everything else is frozen (docs/design.md, section 5).
LORA_AND_ADAPTER = nnx.Any(nnx.LoRAParam, AdapterParam)


def trainable_filter(which: str) -> Any:
    """NNX filter of the weights that train.

    Args:
      which: "lora_and_adapter" as the published models, or "all" for a model without a pretrained
        base.

    Raises:
      ValueError: for any other value.
    """
    filters: dict[str, Any] = {"lora_and_adapter": LORA_AND_ADAPTER, "all": nnx.Param}
    if which not in filters:
        raise ValueError(f"trainable={which!r}: accepted are {sorted(filters)}")
    return filters[which]


def lora_fields(config: CoTIRConfig) -> dict[str, Any]:
    """The arguments of `Linear` that say what LoRA it has."""
    return dict(rank=config.lora_rank, scale=config.lora_scale, lora_bias=config.lora_bias)


class Linear(nnx.Module):
    """`y = x W + b + scale * (x A B + b_B)`, LoRA's product only where `rank > 0`.

    A starts as PyTorch's default linear initialisation and B and its bias at zero, so that training
    starts at the base model; the release also draws B at random (docs/design.md, section 3).

    Args:
      in_features, out_features: sizes.
      axes: logical names of the kernel's two axes, for sharding.
      use_bias: whether the base layer has a bias. LoRA's B always has one, as on disk.
      rank, scale: of the LoRA update; the rank is at most either size.
      lora_bias: whether b_B is there without A and B (a merged LoRA); with a rank it always is.
      param_type: variable type of the base weights.
      param_dtype: dtype of the base weights; LoRA weights are float32 master copies.
      dtype: dtype of the matrix products.
      zero_init: start at zero instead of at LeCun's normal initialisation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None] = ("embed", "mlp"),
        use_bias: bool = False,
        rank: int = 0,
        scale: float = 1.0,
        lora_bias: bool = False,
        param_type: type[nnx.Param] = nnx.Param,
        param_dtype: str = "float32",
        dtype: str = "float32",
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.zeros if zero_init else nnx.initializers.lecun_normal()
        torch_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        zeros = jnp.zeros
        self.kernel = sharded_param(
            param_type, init(rngs.params(), (in_features, out_features), param_dtype), axes
        )
        self.bias = (
            sharded_param(param_type, zeros((out_features,), param_dtype), axes[1:])
            if use_bias
            else None
        )
        self.scale, self.dtype = scale, dtype
        # The release caps the rank by the layer's size: kontext-12b's output layer has rank 64.
        rank = self.rank = min(rank, in_features, out_features)
        if rank:
            a = torch_init(rngs.params(), (in_features, rank), jnp.float32)
            self.lora_a = sharded_param(nnx.LoRAParam, a, (axes[0], None))
            b = zeros((rank, out_features), jnp.float32)
            self.lora_b = sharded_param(nnx.LoRAParam, b, (None, axes[1]))
        self.lora_bias = (
            sharded_param(nnx.LoRAParam, zeros((out_features,), jnp.float32), axes[1:])
            if rank or lora_bias
            else None
        )

    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        """Applies the layer to `[..., in_features]`.

        Args:
          x: input.
          columns: output columns to compute, for callers that need a part of a fused layer.
        """
        x = x.astype(self.dtype)
        y = _product(x, self.kernel[...][:, columns].astype(self.dtype))
        if self.bias is not None:
            y = y + self.bias[...][columns].astype(self.dtype)
        if self.rank:
            low = _product(x, self.lora_a[...].astype(self.dtype))
            b = self.lora_b[...][:, columns].astype(self.dtype)
            y = y + self.scale * _product(low, b)
        if self.lora_bias is not None:
            y = y + self.scale * self.lora_bias[...][columns].astype(self.dtype)
        return y


def _product(x: jax.Array, kernel: Any) -> jax.Array:
    if isinstance(kernel, jax.Array):
        return products.product(x, kernel) if products.in_bfloat16() else x @ kernel
    import qwix  # the kernel is int8: `quantization.quantize_blocks`

    return qwix.dot(x, kernel)


def sharded_param(
    param_type: type[nnx.Param], value: jax.Array, axes: tuple[str | None, ...]
) -> nnx.Param:
    """A parameter with logical axes; `parallel.sharding` decides where they are placed."""
    return param_type(value, out_sharding=axes, eager_sharding=False)
