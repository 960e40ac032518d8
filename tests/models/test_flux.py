"""Both transformers against diffusers, on tiny random weights in diffusers' own names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cotir_jax.conversion.fill import fill
from cotir_jax.conversion.names import transformer as names
from cotir_jax.models import transformer
from cotir_jax.models.flux import image_position_ids, text_position_ids
from cotir_jax.models.presets import preset
from cotir_jax.models.transformer import Text, Transformer, condition_reference

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
diffusers = pytest.importorskip("diffusers", reason="the oracle is diffusers")

TINY = (
    "hidden_size=32, num_heads=2, num_double_blocks=2, num_single_blocks=3, adapter_depth=1, "
    "adapter_mlp_ratio=1.0, lora_rank=2, text_tokens=7, position_dtype='float32', "
    "base_dtype='float32', dtype='float32'"
)
FLUX1 = preset(
    "kontext-12b",
    f"{TINY}, axes_dim=(4, 6, 6), text_channels=20, pooled_channels=12, in_channels=16",
)
FLUX2 = preset("klein-4b", f"{TINY}, axes_dim=(4, 4, 4, 4), text_channels=24, in_channels=16")
BATCH, HEIGHT, WIDTH = 2, 4, 6
predict = nnx.jit(transformer.predict)


def flux1_oracle(guidance: bool = True):
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return _randomised(model)


def flux2_oracle(guidance: bool = False):
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=256,
        mlp_ratio=3.0,
        axes_dims_rope=(4, 4, 4, 4),
        rope_theta=2000,
        guidance_embeds=guidance,
    )
    return _randomised(model)


def _randomised(model):
    """Norm scales start at one: no test of them would fail."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm_" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    return model.eval()


def _ours(oracle, config):
    model = Transformer(config, rngs=nnx.Rngs(0))
    tensors = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    fill(model, names.diffusers(config), tensors)
    return model


def _case(config):
    rng = np.random.default_rng(0)
    latents, condition = rng.standard_normal((2, BATCH, HEIGHT, WIDTH, 16), np.float32)
    text = rng.standard_normal((BATCH, 7, config.text_channels), np.float32)
    timestep = np.array([0.9, 0.3], np.float32)
    return latents, condition, text, timestep


def _tokens(grid):
    return torch.from_numpy(grid.reshape(BATCH, -1, 16).copy())


def _ids(*parts):
    return torch.from_numpy(np.concatenate([np.asarray(part) for part in parts])).float()


def _assert_close(ours, oracle):
    oracle = oracle.reshape(ours.shape)
    error = np.abs(np.asarray(ours) - oracle).max() / np.abs(oracle).max()
    assert error < 1e-4, error


@pytest.mark.parametrize("guidance", [True, False])
def test_flux1_equals_diffusers(guidance):
    config = dataclasses.replace(FLUX1, guidance_embed=guidance)
    oracle = flux1_oracle(guidance)
    latents, condition, text, timestep = _case(config)
    pooled = np.random.default_rng(1).standard_normal((BATCH, 12), np.float32)
    value = np.array([4.0, 2.5], np.float32) if guidance else None
    with torch.no_grad():
        expected = oracle(
            torch.cat([_tokens(latents), _tokens(condition)], dim=1),
            encoder_hidden_states=torch.from_numpy(text),
            pooled_projections=torch.from_numpy(pooled),
            timestep=torch.from_numpy(timestep),
            img_ids=_ids(*image_position_ids("flux1", HEIGHT, WIDTH)),
            txt_ids=_ids(text_position_ids("flux1", 7)),
            guidance=None if value is None else torch.from_numpy(value),
        ).sample[:, : HEIGHT * WIDTH]
    model = _ours(oracle, config)
    out = predict(model, latents, condition, Text(text, pooled), timestep, value)
    _assert_close(out.velocity, expected.numpy())


@pytest.mark.parametrize("guidance", [True, False])
def test_flux2_equals_diffusers(guidance):
    config = dataclasses.replace(FLUX2, guidance_embed=guidance)
    oracle = flux2_oracle(guidance)
    latents, condition, text, timestep = _case(config)
    value = np.array([4.0, 2.5], np.float32) if guidance else None
    with torch.no_grad():
        expected = oracle(
            torch.cat([_tokens(latents), _tokens(condition)], dim=1),
            encoder_hidden_states=torch.from_numpy(text),
            timestep=torch.from_numpy(timestep),
            img_ids=_ids(*image_position_ids("flux2", HEIGHT, WIDTH)),
            txt_ids=_ids(text_position_ids("flux2", 7)),
            guidance=None if value is None else torch.from_numpy(value),
        ).sample[:, : HEIGHT * WIDTH]
    model = _ours(oracle, config)
    out = predict(model, latents, condition, Text(text), timestep, value)
    _assert_close(out.velocity, expected.numpy())


def test_reference_cache_equals_diffusers():
    """klein-9b-kv: one pass that fills the cache, then one at another timestep that reads it."""
    from diffusers.models.transformers import transformer_flux2 as theirs

    oracle = flux2_oracle()
    for block in oracle.transformer_blocks:
        block.attn.set_processor(theirs.Flux2KVAttnProcessor())
    for block in oracle.single_transformer_blocks:
        block.attn.set_processor(theirs.Flux2KVParallelSelfAttnProcessor())
    config = dataclasses.replace(FLUX2, reference_cache=True)
    latents, condition, text, timestep = _case(config)
    target_ids, condition_ids = image_position_ids("flux2", HEIGHT, WIDTH)
    common = dict(
        encoder_hidden_states=torch.from_numpy(text), txt_ids=_ids(text_position_ids("flux2", 7))
    )
    with torch.no_grad():
        first = oracle(
            torch.cat([_tokens(condition), _tokens(latents)], dim=1),
            timestep=torch.from_numpy(timestep),
            img_ids=_ids(condition_ids, target_ids),
            kv_cache_mode="extract",
            num_ref_tokens=HEIGHT * WIDTH,
            **common,
        )
        second = oracle(
            _tokens(latents),
            timestep=torch.from_numpy(timestep / 2),
            img_ids=_ids(target_ids),
            kv_cache=first.kv_cache,
            kv_cache_mode="cached",
            **common,
        )
    model = _ours(oracle, config)
    reference = condition_reference(model, jnp.asarray(condition))
    for time, expected in ((timestep, first), (timestep / 2, second)):
        out = predict(model, latents, condition, Text(text), time, reference=reference)
        _assert_close(out.velocity, expected.sample.numpy())


def test_reference_cache_holds_with_the_adapter():
    """A cache given equals one computed on the way, with adapter and LoRA at work."""
    config = dataclasses.replace(FLUX2, reference_cache=True)
    model = Transformer(config, rngs=nnx.Rngs(0))
    key = jax.random.key(1)
    state = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape),
        nnx.state(model, nnx.Param),
    )
    nnx.update(model, state)
    latents, condition, text, timestep = _case(config)
    reference = condition_reference(model, jnp.asarray(condition))
    given = predict(model, latents, condition, Text(text), timestep, reference=reference)
    computed = predict(model, latents, condition, Text(text), timestep)
    np.testing.assert_allclose(given.velocity, computed.velocity, rtol=1e-5, atol=1e-5)
    other = predict(model, latents, condition[::-1], Text(text), timestep)
    assert np.abs(other.scene - computed.scene).max() > 1e-3  # the adapter sees the condition


def test_flux1_needs_its_pooled_text():
    model = Transformer(FLUX1, rngs=nnx.Rngs(0))
    latents, condition, text, timestep = _case(FLUX1)
    guidance = np.full((BATCH,), 4.0, np.float32)
    for pooled in (None, np.zeros((BATCH, 5), np.float32)):
        with pytest.raises(ValueError, match="pooled text .* expected \\[batch, 12\\]"):
            predict(model, latents, condition, Text(text, pooled), timestep, guidance)
