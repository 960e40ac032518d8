"""Sizes of published models, read from the `config.json` next to their weights.

Every reader refuses a setting that this package does not implement, so that weights which would
compute something else are never converted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cotir_jax.models.autoencoder import AutoencoderConfig
from cotir_jax.models.autoencoder_layers import GROUPS
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.text_encoders.clip import ACTIVATIONS, CLIPConfig
from cotir_jax.models.text_encoders.qwen3 import Qwen3Config
from cotir_jax.models.text_encoders.t5 import T5Config

# Settings that must have one of these values; None: the file need not have it.
_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "Qwen3": dict(
        model_type=("qwen3",), hidden_act=("silu", None), attention_bias=(False, None),
        use_sliding_window=(False, None), quantization_config=(None,),
    ),
    # mT5, UMT5 and the first T5, with its ReLU, are other models.
    "T5": dict(
        model_type=("t5",), feed_forward_proj=("gated-gelu",), dense_act_fn=("gelu_new", None),
        is_gated_act=(True, None), is_decoder=(False, None), quantization_config=(None,),
    ),
    "CLIP": dict(
        model_type=("clip_text_model", "clip"), hidden_act=(*ACTIVATIONS, None),
        quantization_config=(None,),
    ),
}  # fmt: skip
# Our field -> the file's.
_SIZES: dict[str, dict[str, str]] = {
    "Qwen3": dict(
        vocab_size="vocab_size", hidden_size="hidden_size", mlp_size="intermediate_size",
        num_heads="num_attention_heads", num_kv_heads="num_key_value_heads", head_dim="head_dim",
        norm_eps="rms_norm_eps", theta="rope_theta", layers="num_hidden_layers",
    ),
    "T5": dict(
        vocab_size="vocab_size", width="d_model", mlp_size="d_ff", num_heads="num_heads",
        head_dim="d_kv", num_layers="num_layers", num_buckets="relative_attention_num_buckets",
        max_distance="relative_attention_max_distance", norm_eps="layer_norm_epsilon",
    ),
    "CLIP": dict(
        vocab_size="vocab_size", max_tokens="max_position_embeddings", hidden_size="hidden_size",
        mlp_size="intermediate_size", num_heads="num_attention_heads",
        num_layers="num_hidden_layers", norm_eps="layer_norm_eps",
    ),
}  # fmt: skip
# What both of diffusers' autoencoders must say; then by class, our kind and what else it must say.
_VAE_SETTINGS: dict[str, tuple[Any, ...]] = dict(
    in_channels=(3, None), out_channels=(3, None), act_fn=("silu", None),
    norm_num_groups=(GROUPS, None), mid_block_add_attention=(True, None),
)  # fmt: skip
_VAES: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "AutoencoderKL": (
        "flux1", dict(use_quant_conv=(False, None), use_post_quant_conv=(False, None)),
    ),
    "AutoencoderKLFlux2": (
        "flux2",
        dict(
            use_quant_conv=(True, None), use_post_quant_conv=(True, None),
            patch_size=([2, 2], (2, 2), None), decoder_block_out_channels=(None,),
        ),
    ),
}  # fmt: skip


def _check(model: str, settings: Mapping[str, tuple[Any, ...]], fields: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a setting has a value that is not implemented."""
    for name, accepted in settings.items():
        found = fields.get(name)
        if found not in accepted:
            known = " or ".join(repr(value) for value in accepted if value is not None)
            raise ValueError(
                f"config.json of the {model} has {name} {found!r}, expected {known or 'none'}: "
                "point to the folder that belongs to the model"
            )


def _read_encoder(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes under our names, with `param_dtype` and `dtype`: float32 where the file says so.

    float16 becomes bfloat16, because T5 overflows in float16.
    """
    encoder = f"{name} text encoder"
    _check(encoder, _SETTINGS[name], fields)
    # transformers before 5 writes torch_dtype.
    dtype = fields.get("dtype", fields.get("torch_dtype"))
    sizes = {}
    for ours, theirs in _SIZES[name].items():
        value = sizes[ours] = fields.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(
                f"config.json of the {encoder} has {theirs} {value!r}, expected a positive number: "
                "is the file complete?"
            )
    chosen = "float32" if dtype == "float32" else "bfloat16"
    return sizes | {"param_dtype": chosen, "dtype": chosen}


def qwen3(fields: Mapping[str, Any], output_layers: Sequence[int] = (9, 18, 27)) -> Qwen3Config:
    """Reads the `config.json` of a Qwen3 folder, as transformers 4 or 5 writes it.

    Args:
      fields: the file's content.
      output_layers: after which layers to read the residual stream.

    Raises:
      ValueError: for another architecture, a setting that is not implemented, or too few layers.
    """
    # transformers 4: rope_theta and rope_scaling; 5: both in rope_parameters.
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _check("Qwen3 text encoder", {"rope_type": ("default",)}, {"rope_type": rope_type})
    for kind in fields.get("layer_types") or ():
        _check("Qwen3 text encoder", {"layer_types": ("full_attention",)}, {"layer_types": kind})
    theta = rope.get("rope_theta", fields.get("rope_theta"))
    sizes = _read_encoder("Qwen3", {**fields, "rope_theta": theta})
    layers, last = sizes.pop("layers"), max(output_layers, default=0)
    if layers <= last:
        # transformers normalises the state after the last layer, so even `==` is another number.
        raise ValueError(
            f"this Qwen3 has {layers} layers, expected more than {last}: FLUX.2 klein 4B needs "
            "Qwen3-4B, klein 9B Qwen3-8B"
        )
    return Qwen3Config(**sizes, output_layers=tuple(output_layers))


def t5(fields: Mapping[str, Any]) -> T5Config:
    """Reads the `config.json` of a T5 v1.1 folder, with or without the decoder.

    Raises:
      ValueError: for another architecture or a setting that is not implemented.
    """
    # Files of transformers before 4.16 have no maximum distance.
    return T5Config(**_read_encoder("T5", {"relative_attention_max_distance": 128, **fields}))


def clip(fields: Mapping[str, Any]) -> CLIPConfig:
    """Reads the `config.json` of a CLIP folder, text encoder only or both towers.

    Raises:
      ValueError: for another architecture or a setting that is not implemented.
    """
    if fields.get("model_type") == "clip":
        outer = ("model_type", "dtype", "torch_dtype", "quantization_config")
        text = fields.get("text_config") or {}
        fields = {**text, **{name: fields[name] for name in outer if name in fields}}
    sizes = _read_encoder("CLIP", fields)
    end_id = fields.get("eos_token_id", CLIPConfig.end_id)
    if isinstance(end_id, bool) or not isinstance(end_id, int):
        raise ValueError(
            f"config.json of the CLIP text encoder has eos_token_id {end_id!r}, expected one id"
        )
    return CLIPConfig(**sizes, activation=fields.get("hidden_act") or "quick_gelu", end_id=end_id)


def autoencoder(fields: Mapping[str, Any]) -> AutoencoderConfig:
    """Reads the sizes next to an autoencoder: a diffusers `vae/config.json`, or native ones.

    Native sizes have `ch_mult`; FLUX.2's have `batch_norm_eps`, FLUX.1's `scale_factor` and
    `shift_factor`. Defaults of diffusers' classes are not assumed for sizes.

    Raises:
      ValueError: for another class, one that computes something else, or a field that is missing.
    """
    try:
        if "ch_mult" in fields:
            kind = "flux2" if "batch_norm_eps" in fields else "flux1"
            names = ("ch", "num_res_blocks", "z_channels", "scale_factor")
            multipliers = tuple(fields["ch_mult"])
            channels = fields["ch"]
        else:
            name = fields.get("_class_name")
            if name not in _VAES:
                raise ValueError(f"vae class {name!r}: accepted are {sorted(_VAES)}")
            kind, settings = _VAES[name]
            _check(f"{kind} vae", _VAE_SETTINGS | settings, fields)
            names = ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor")
            widths = list(fields["block_out_channels"])
            channels = widths[0]
            if any(width % channels for width in widths):
                raise ValueError(f"vae block_out_channels={widths}: must be multiples of the first")
            multipliers = tuple(width // channels for width in widths)
        if kind == "flux1":
            normalisation = {"scale": fields[names[3]], "shift": fields["shift_factor"]}
        else:
            normalisation = {"batch_norm_eps": fields["batch_norm_eps"]}
        sizes = normalisation | {
            "channels": channels,
            "num_res_blocks": fields[names[1]],
            "latent_channels": fields[names[2]],
        }
    except KeyError as error:
        raise ValueError(f"autoencoder config without {error}: it has {sorted(fields)}") from None
    missing = [name for name, value in sizes.items() if not value]
    if missing:
        raise ValueError(f"autoencoder config without {missing}: take it from the release")
    return AutoencoderConfig(kind, multipliers=multipliers, **sizes)


def transformer(sizes: Mapping[str, Any]) -> CoTIRConfig:
    """Reads the sizes of a model as the release's `config.json` writes them.

    The FLUX.1 family is known by its CLIP vector (`vec_in_dim`).

    Args:
      sizes: `{"backbone": {...}, "cot_adapter": {...}, "lora": {...}, "text_tokens": ...}`.
    """
    backbone, adapter, lora = sizes["backbone"], sizes["cot_adapter"], sizes["lora"]
    pooled_channels = backbone.get("vec_in_dim", 0)
    family = "flux1" if pooled_channels else "flux2"
    guidance_embed = backbone["guidance_embed" if pooled_channels else "use_guidance_embed"]
    same = ("hidden_size", "num_heads", "theta", "mlp_ratio", "in_channels")
    return CoTIRConfig(
        name="release",
        family=family,
        **{name: backbone[name] for name in same},
        num_double_blocks=backbone["depth"],
        num_single_blocks=backbone["depth_single_blocks"],
        axes_dim=tuple(backbone["axes_dim"]),
        text_channels=backbone["context_in_dim"],
        text_tokens=sizes["text_tokens"],
        pooled_channels=pooled_channels,
        guidance_embed=guidance_embed,
        guidance=4.0 if guidance_embed else 0.0,
        adapter_depth=adapter["depth"],
        adapter_mlp_ratio=adapter["mlp_ratio"],
        lora_rank=lora["rank"],
        lora_scale=lora["scale"],
        autoencoder=family,
        text_encoder="t5" if pooled_channels else "qwen3",
        position_dtype="float32",
        base_dtype="float32",
        dtype="float32",
        remat="none",
    )
