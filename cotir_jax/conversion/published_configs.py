"""Sizes of published models, read from the `config.json` next to their weights.

Every reader refuses a setting that this package does not implement, so that weights which would
compute something else are never converted.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cotir_jax.models.autoencoder import AutoencoderConfig
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.text_encoders.clip import CLIPConfig
from cotir_jax.models.text_encoders.qwen3 import Qwen3Config
from cotir_jax.models.text_encoders.t5 import T5Config

# The content of `published_configs.toml`, which explains it.
_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_VAES = ("AutoencoderKL", "AutoencoderKLFlux2")


def _check(model: str, table: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a setting has a value that is not implemented."""
    required, optional = table.get("required", {}), table.get("optional", {})
    for name, accepted in (required | optional).items():
        found = fields.get(name)
        found = list(found) if isinstance(found, tuple) else found
        if found not in accepted and not (found is None and name in optional):
            known = " or ".join(map(repr, accepted))
            raise ValueError(
                f"config.json of the {model} has {name} {found!r}, expected {known or 'none'}: "
                "point to the folder that belongs to the model"
            )


def _read_encoder(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes under our names, with `param_dtype` and `dtype`: float32 where the file says so.

    float16 becomes bfloat16, because T5 overflows in float16.
    """
    encoder = f"{name} text encoder"
    _check(encoder, _TABLES[name], fields)
    # transformers before 5 writes torch_dtype.
    dtype = fields.get("dtype", fields.get("torch_dtype"))
    sizes = {}
    for ours, theirs in _TABLES[name]["sizes"].items():
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
    accepted = {"rope_type": ["default"], "layer_types": ["full_attention"]}
    for kind in fields.get("layer_types") or ["full_attention"]:
        found = {"rope_type": rope_type, "layer_types": kind}
        _check("Qwen3 text encoder", {"required": accepted}, found)
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
            kind = _TABLES[name]["kind"]
            _check(f"{kind} vae", _TABLES[name], fields)
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
