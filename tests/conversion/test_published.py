"""Published models from disk to pictures and back: convert, restore, train, export, at tiny size.

The oracle of restoring is the same pipeline in PyTorch, put together from diffusers' and
transformers' modules that read the very folders that were converted.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is PyTorch")
pytest.importorskip("diffusers", reason="the oracle is diffusers")
pytest.importorskip("transformers", reason="the oracle is transformers")

import diffusers
import torch
import transformers
from support import tiny_published
from support.xla_flags import xla_flags

from cotir_jax import cli
from cotir_jax.bench.build import build_bench
from cotir_jax.checkpoints import model_folder
from cotir_jax.explaining import explainer, read_out
from cotir_jax.models import sampling
from cotir_jax.restoring.restorer import Restorer

MODELS = ("klein-4b", "kontext-12b")
PROMPT = "remove the haze, then sharpen"
SIDES = (32, 48)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Diffusers folders, each with lora.pt and cot_adapter.pt beside it."""
    root = tmp_path_factory.mktemp("published")
    return {model: tiny_published.write_folder(root / model, model) for model in MODELS}


def _convert(model, base, out, *more, overrides=""):
    arguments = ["convert", f"--model={model}", f"--base={base}", f"--out={out}"]
    arguments += [f"--overrides={tiny_published.OVERRIDES[model]}{overrides}", *more]
    cli.main(arguments)
    return out


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    """Model folders with LoRA and adapter."""
    root = tmp_path_factory.mktemp("converted")
    return {model: _convert(model, published[model], root / model) for model in MODELS}


@pytest.fixture(scope="module")
def base_only(published, tmp_path_factory):
    """Model folders without LoRA and adapter: the published editing model."""
    root = tmp_path_factory.mktemp("base")
    folders = {}
    for model, folder in published.items():
        bare = root / f"{model}.published"
        bare.mkdir()
        for part in folder.iterdir():
            if part.is_dir():
                (bare / part.name).symlink_to(part)
        folders[model] = _convert(model, bare, root / model)
    return folders


def _picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*SIDES, 3), np.uint8)


def _oracle_text(folder, model, prompt):
    if model == "klein-4b":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
        encoder = transformers.Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").eval()
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        tokens = tokenizer(
            text, return_tensors="pt", padding="max_length", truncation=True, max_length=24
        )
        states = encoder(**tokens, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in (9, 18, 27)], dim=-1), None
    tokens = [
        transformers.AutoTokenizer.from_pretrained(folder / name)(
            prompt, return_tensors="pt", padding="max_length", truncation=True, max_length=length
        ).input_ids
        for name, length in (("tokenizer_2", 24), ("tokenizer", 77))
    ]
    t5 = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_2").eval()
    clip = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    return t5(tokens[0])[0], clip(tokens[1]).pooler_output


def _packed(latents):
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def _unpacked(tokens, height, width):
    channels = tokens.shape[-1] // 4
    split = tokens.reshape(-1, height, width, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return split.reshape(-1, channels, 2 * height, 2 * width)


def _position_ids(model, height, width):
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    zero = np.zeros_like(y)
    flux2 = model == "klein-4b"
    parts = [
        np.stack([zero + time, y, x, *([zero] if flux2 else [])], axis=-1).reshape(
            height * width, -1
        )
        for time in ((0, 10) if flux2 else (0, 1))
    ]
    text = np.zeros((24, parts[0].shape[-1]))
    if flux2:
        text[:, 3] = np.arange(24)
    return torch.from_numpy(np.concatenate(parts)).float(), torch.from_numpy(text).float()


@torch.no_grad()
def _oracle(folder, model, picture, prompt, noise, guidance=0.0):
    """uint8 picture of the same pipeline in PyTorch; `guidance` is the two-pass kind."""
    flux2 = model == "klein-4b"
    vae_class = diffusers.AutoencoderKLFlux2 if flux2 else diffusers.AutoencoderKL
    vae = vae_class.from_pretrained(folder / "vae").eval()
    kind = diffusers.Flux2Transformer2DModel if flux2 else diffusers.FluxTransformer2DModel
    transformer = kind.from_pretrained(folder / "transformer").eval()
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    mean = vae.encode(pixels).latent_dist.mode()
    height, width = mean.shape[2] // 2, mean.shape[3] // 2
    if flux2:
        deviation = torch.sqrt(vae.bn.running_var + 1e-4)
        condition = (_packed(mean) - vae.bn.running_mean) / deviation
    else:
        condition = _packed(0.3611 * (mean - 0.1159))
    image_ids, text_ids = _position_ids(model, height, width)

    def velocity(x, time, prompt):
        text, pooled = _oracle_text(folder, model, prompt)
        extra = {} if flux2 else {"pooled_projections": pooled, "guidance": torch.tensor([4.0])}
        return transformer(
            torch.cat([x, condition], dim=1),
            encoder_hidden_states=text,
            timestep=torch.tensor([time]),
            img_ids=image_ids,
            txt_ids=text_ids,
            **extra,
        ).sample[:, : height * width]

    x = torch.from_numpy(noise.reshape(1, height * width, -1).copy())
    family = "flux2" if flux2 else "flux1"
    schedule = sampling.schedule(family, 2, height * width)  # itself held to the golden values
    for now, after in zip(schedule[:-1], schedule[1:], strict=True):
        direction = velocity(x, now, prompt)
        if guidance:
            unguided = velocity(x, now, "")
            direction = unguided + guidance * (direction - unguided)
        x = x + float(after - now) * direction
    if flux2:
        latents = _unpacked(x * deviation + vae.bn.running_mean, height, width)
    else:
        latents = _unpacked(x, height, width) / 0.3611 + 0.1159
    decoded = vae.decode(latents).sample[0].permute(1, 2, 0).numpy()
    return np.clip(decoded * 127.5 + 127.5, 0, 255)


def _assert_restores_like_the_oracle(folder, oracle_folder, model, guidance=0.0):
    picture = _picture()
    key = jax.random.key(3)
    restored = Restorer.load(folder)(picture, PROMPT, num_steps=2, seed=3).image
    noise = np.asarray(jax.random.normal(key, (SIDES[0] // 16, SIDES[1] // 16, 16)))
    expected = _oracle(oracle_folder, model, picture, PROMPT, noise, guidance)
    assert expected.std() > 1  # a flat picture would show nothing
    # Ours is rounded to 8 bits: half a level, and what float32 sums in another order add.
    np.testing.assert_allclose(restored, expected, atol=0.53)


@pytest.mark.parametrize("model", MODELS)
def test_restoring_equals_the_pytorch_pipeline(published, base_only, model):
    _assert_restores_like_the_oracle(base_only[model], published[model], model)


def test_two_pass_guidance_equals_the_pytorch_pipeline(published, base_only, tmp_path):
    folder = _changed(base_only["klein-4b"], tmp_path / "guided", guidance=4.0)
    _assert_restores_like_the_oracle(folder, published["klein-4b"], "klein-4b", guidance=4.0)


def _changed(folder, out, **fields):
    """The same weights under another config."""
    out.mkdir()
    for part in Path(folder).iterdir():
        if part.name != "model.json":
            (out / part.name).symlink_to(part)
    described = json.loads((folder / "model.json").read_text())
    described["model"] |= fields
    (out / "model.json").write_text(json.dumps(described))
    return out


def test_reference_cache_restores(converted, tmp_path):
    """klein-9b-kv's way, end to end; its numbers are compared with diffusers in test_flux."""
    folder = _changed(converted["klein-4b"], tmp_path / "kv", reference_cache=True)
    restorer = Restorer.load(folder)
    plain = Restorer.load(converted["klein-4b"])
    ours, other = (one(_picture(), PROMPT).image for one in (restorer, plain))
    assert ours.shape == other.shape and np.abs(ours.astype(int) - other).max() > 0


@pytest.mark.parametrize("model", MODELS)
def test_published_models_explain(converted, model, tmp_path, monkeypatch):
    """Random weights say nothing, but in the right form, and the read-out is kept."""
    fit = functools.partial(read_out.fit_read_out, per_name=1)
    monkeypatch.setattr(explainer, "fit_read_out", fit)
    folder = _changed(converted[model], tmp_path / "model")
    thoughts = Restorer.load(folder)(_picture(), PROMPT, explain=True).thoughts
    assert len(thoughts.degradations) == 19 and not thoughts.calibrated and thoughts.plan
    assert (folder / explainer.FILE_NAME).exists()
    again = Restorer.load(folder).explainer(_picture())
    scores = [[r.score for r in each.degradations] for each in (thoughts, again)]
    np.testing.assert_allclose(*scores, atol=0.02)  # kept in half precision


def test_restore_command_reads_a_model_folder(converted, tmp_path, capsys):
    from cotir_jax.images.pictures import load_picture, save_picture

    save_picture(np.resize(_picture(), (37, 50, 3)), tmp_path / "in.png")
    arguments = ["restore", str(tmp_path / "in.png"), f"--out={tmp_path / 'out.png'}"]
    cli.main([*arguments, f"--model-dir={converted['kontext-12b']}", f"--prompt={PROMPT}"])
    assert load_picture(tmp_path / "out.png").shape == (37, 50, 3)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_training_continues_a_converted_model_and_exports(converted, model, tmp_path):
    build_bench(
        tmp_path / "bench", None, samples_per_degradation=2, test_per_degradation=1, size=48,
        composites=False, workers=2,
    )  # fmt: skip
    overrides = tiny_published.OVERRIDES[model].replace("'", '"')
    command = [
        sys.executable, "-m", "cotir_jax.main", f"--config=configs/default.py:{model}",
        f"--workdir={tmp_path / 'run'}", f"--config.init={converted[model]}",
        f"--config.model.overrides={overrides}", f"--config.data.dir={tmp_path / 'bench'}",
        "--config.data.workers=0", "--config.data.threads=1", "--config.data.text_cache_gb=0.1",
        "--config.train.steps=3", "--config.train.stages=((3, 32, 2),)", "--config.mesh.data=1",
        "--config.train.warmup_steps=1", "--config.checkpoint.every=3", "--config.log.every=1",
    ]  # fmt: skip
    two_devices = os.environ | {"XLA_FLAGS": xla_flags(devices=2)}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, cwd=root, env=two_devices, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    losses = json.loads(result.stdout.splitlines()[-1])
    assert losses["step"] == 3 and np.isfinite(losses["loss"])

    trained = tmp_path / "run" / "model"
    described = json.loads((trained / "model.json").read_text())
    assert described["base"] == str(converted[model])
    stored = {path.name for path in (trained / "weights").iterdir()}
    assert not any(name.startswith("double_blocks") for name in stored)  # base is not repeated

    for folder, out in ((converted[model], "before"), (trained, "after")):
        cli.main(["export", f"--model-dir={folder}", f"--out={tmp_path / out}"])
    for name in ("lora.pt", "cot_adapter.pt"):
        before, after = (
            torch.load(tmp_path / out / name, weights_only=True) for out in ("before", "after")
        )
        assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
        moved = [k for k in before if not torch.equal(before[k].float(), after[k].float())]
        assert len(moved) > len(before) // 2, (name, moved)
    ours, base = (
        Restorer.load(folder)(_picture(), PROMPT).image for folder in (trained, converted[model])
    )
    assert np.abs(ours.astype(int) - base).max()


def test_a_published_model_does_not_start_from_nothing(tmp_path):
    command = [sys.executable, "-m", "cotir_jax.main", "--config=configs/default.py:klein-9b",
               f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: config.init='scratch'")


def test_configs_of_all_published_models():
    from cotir_jax.configs import default

    for model, batch in (("klein-4b", 32), ("klein-9b", 8), ("kontext-12b", 16)):
        config = default.get_config(model)
        assert config.model.name == model and config.train.stages[-1] == (120_001, 512, batch)


def test_what_trains_is_kept_in_float32(converted):
    from flax import nnx

    from cotir_jax.models.lora import LORA_AND_ADAPTER
    from cotir_jax.parallel.sharding import RULES, make_mesh

    config = dataclasses.replace(
        model_folder.load_config(converted["klein-4b"]), base_dtype="bfloat16", dtype="bfloat16"
    )
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    model = model_folder.load_model(converted["klein-4b"], mesh, RULES, config)
    trained, base = nnx.split(model, LORA_AND_ADAPTER, ...)[1:]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(base)} == {"bfloat16"}
    kernel = model.single_blocks.linear1.kernel[...]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
