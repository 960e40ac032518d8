"""Tiny models on disk, laid out as the published ones are: diffusers folders, `lora.pt`,
`cot_adapter.pt`. Random weights; sizes far too small to restore anything."""

import json
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
import transformers
from flax import nnx
from support import tokenizer_folders

from cotir_jax.conversion.name_tables import Table, disassemble
from cotir_jax.conversion.names import adapter
from cotir_jax.models.presets import CoTIRConfig, preset
from cotir_jax.models.transformer import Transformer

_SIZES = (
    "hidden_size=32, num_heads=2, num_double_blocks=2, num_single_blocks=3, adapter_depth=2, "
    "adapter_mlp_ratio=1.0, lora_rank=4, text_tokens=24, in_channels=16, num_steps=2, "
    "position_dtype='float32', base_dtype='float32', dtype='float32', remat='none'"
)
# What `--overrides` gives convert, and what the models below are built with.
OVERRIDES = {
    "klein-4b": f"{_SIZES}, axes_dim=(4, 4, 4, 4), text_channels=96",
    "kontext-12b": f"{_SIZES}, axes_dim=(4, 6, 6), text_channels=20, pooled_channels=16",
}


def config_of(model: str) -> CoTIRConfig:
    return preset(model, OVERRIDES[model])


def write_folder(folder: Path, model: str) -> Path:
    """A diffusers folder of `model`, whole, with the release's two files beside it."""
    torch.manual_seed(0)
    write_transformer(folder / "transformer", model)
    write_autoencoder(folder / "vae", config_of(model).autoencoder)
    if model == "klein-4b":
        _write_qwen3(folder / "text_encoder")
        _write_tokenizer(folder / "tokenizer", "qwen3")
    else:
        _write_tokenizer(folder / "tokenizer", "clip")
        vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
        _write_clip(folder / "text_encoder", end=vocabulary["<|endoftext|>"])
        _write_t5(folder / "text_encoder_2")
        _write_tokenizer(folder / "tokenizer_2", "t5")
    torch.save(random_tensors(model, adapter.lora(config_of(model)), 1), folder / "lora.pt")
    tensors = random_tensors(model, adapter.cot_adapter(config_of(model)), 2)
    torch.save(tensors, folder / "cot_adapter.pt")
    return folder


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Norm scales start at one and biases at zero: a test of them could not fail."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                start = 1 if "norm" in name and name.endswith("weight") else 0
                parameter.copy_(start + 0.2 * torch.randn_like(parameter))
    return model.eval()


def transformer(model: str) -> torch.nn.Module:
    """The diffusers transformer of `model` at tiny size."""
    common = dict(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
    )
    if model == "klein-4b":
        built = diffusers.Flux2Transformer2DModel(
            joint_attention_dim=96,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
            **common,
        )
    else:
        built = diffusers.FluxTransformer2DModel(
            joint_attention_dim=20,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
            **common,
        )
    return randomised(built)


def write_transformer(folder: Path, model: str, **options) -> torch.nn.Module:
    built = transformer(model)
    built.save_pretrained(folder, **options)
    return built


def write_autoencoder(folder: Path, kind: str) -> torch.nn.Module:
    common = dict(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    if kind == "flux1":
        built = diffusers.AutoencoderKL(
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **common,
        )
    else:
        built = diffusers.AutoencoderKLFlux2(**common)
        built.bn.running_mean.copy_(torch.randn(16) * 0.3)
        built.bn.running_var.copy_(torch.rand(16) + 0.5)
    randomised(built).save_pretrained(folder)
    return built


def random_tensors(model: str, table: Table, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the names of a table, as PyTorch would have saved them."""
    config, rng = config_of(model), np.random.default_rng(seed)
    state = jax.eval_shape(lambda: nnx.split(Transformer(config, rngs=nnx.Rngs(0))))[1]
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    tensors = {}
    for row in table.rows:
        array = 0.1 * rng.standard_normal(shapes[row.path], np.float32)
        tensors |= {name: torch.from_numpy(x) for name, x in disassemble(row, array).items()}
    return tensors


def _write_tokenizer(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    tokenizer_folders.MAKERS[kind](folder)


def _write_qwen3(folder: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=28,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        dtype="float32",
    )
    randomised(transformers.Qwen3ForCausalLM(config)).save_pretrained(folder)


def _write_t5(folder: Path) -> None:
    config = transformers.T5Config(
        vocab_size=200,
        d_model=20,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dtype="float32",
    )
    randomised(transformers.T5EncoderModel(config)).save_pretrained(folder)


def _write_clip(folder: Path, end: int) -> None:
    config = transformers.CLIPTextConfig(
        vocab_size=800,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        eos_token_id=end,
        dtype="float32",
    )
    randomised(transformers.CLIPTextModel(config)).save_pretrained(folder)
