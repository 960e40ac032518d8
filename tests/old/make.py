"""Makes the archives in this folder with the code of commit ab34991.

    git worktree add /tmp/ab34991 ab34991
    PYTHONPATH=/tmp/ab34991:/tmp/ab34991/tests python tests/old/make.py

That takes a few minutes and needs the `test` extra (diffusers and transformers write the published
models that are converted). The archives, each read by `tests/test_old_artifacts.py`:

- `bench.tar.xz`, `records.tar.xz`: a benchmark of three degradations, 32x32 pixels, as tar shards
  and as ArrayRecord files.
- `run.tar.xz`: a workdir whose training was cut off after step 4 of 6; its checkpoint is of step 3.
- `nano.tar.xz`, `klein-4b.tar.xz`, `kontext-12b.tar.xz`: model folders, one that training wrote and
  two that `cotir convert` wrote. The weights of the latter are multiples of 1/16, so that they
  compress.
- `expected.json`: digests of the benchmark's samples, and the losses of the uninterrupted run.
- `*.png`: what the models restore; `packaged` is the nano that ships.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PROMPT = "remove the haze, then sharpen"
PICTURE_SIDES = (32, 48)
STEPS, CUT_OFF = 6, 4
TRAINING_FLAGS = (
    "--config.init=scratch",
    "--config.data.dir=bench",
    "--config.model.overrides=hidden_size=8, num_heads=1, axes_dim=(2, 2, 2, 2), text_tokens=8, "
    "num_single_blocks=2, tile=32, patch=8, in_channels=192, detail_channels=0",
    f"--config.train.steps={STEPS}",
    f"--config.train.stages=(({STEPS}, 32, 2),)",
    "--config.train.learning_rate=1e-2",
    "--config.train.warmup_steps=2",
    "--config.checkpoint.every=3",
    "--config.log.every=1",
    "--config.evaluate.enabled=False",
)


def picture() -> np.ndarray:
    """The degraded picture, `[height, width, 3]` uint8."""
    y, x = np.mgrid[: PICTURE_SIDES[0], : PICTURE_SIDES[1]]
    smooth = np.stack([4 * y + 60, 3 * x + 50, x + y + 60], axis=2)
    return (smooth + np.random.default_rng(0).integers(0, 50, smooth.shape)).astype(np.uint8)


def main() -> None:
    """Makes everything in a temporary folder, then the archives."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        expected = {"samples": make_bench(), "losses": make_run()}
        make_published()
        for name in ("nano", "klein-4b", "kontext-12b", "packaged"):
            Image.fromarray(restored(name)).save(HERE / f"{name}.png")
        for name in ("bench", "records", "run", "nano", "klein-4b", "kontext-12b"):
            with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
                archive.add(name)
        (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def make_bench() -> list[list[str]]:
    """Degradation and SHA-256 of both pictures and the texts of each sample, as training counts."""
    from cotir_jax.bench.build import build_bench
    from cotir_jax.data.shard_index import INDEX_FILE, ShardIndex

    for folder, file_format in (("bench", "tar"), ("records", "array_record")):
        build_bench(
            Path(folder), samples_per_degradation=3, test_per_degradation=1, size=32,
            degradations="noise,haze,low-light", composites=False, progress=False,
            file_format=file_format,
        )  # fmt: skip
    index = ShardIndex.build("bench")
    names = np.repeat(index.degradations, index.counts)
    digests = [
        [str(name), *(hashlib.sha256(field).hexdigest() for field in index.read(number))]
        for number, name in enumerate(names)
    ]
    Path("bench/image", INDEX_FILE).unlink()
    return digests


def make_run() -> dict[str, dict[str, float]]:
    """The losses of an uninterrupted run by step; leaves one that was cut off, and its model."""
    import cotir_jax

    config = Path(cotir_jax.__file__).parents[1] / "configs" / "nano.py"
    command = [sys.executable, "-m", "cotir_jax.main", f"--config={config}", "--workdir=run"]
    subprocess.run([*command, *TRAINING_FLAGS], check=True)
    shutil.move("run/model", "nano")
    shutil.rmtree("run/events")
    shutil.rmtree(f"run/checkpoints/{STEPS}")
    Path("run/validation.png").unlink(missing_ok=True)
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    metrics = [json.loads(line) for line in lines]
    kept = [line for line, step in zip(lines, metrics, strict=True) if step["step"] <= CUT_OFF]
    Path("run/metrics.jsonl").write_text("".join(kept))
    speed = {"step_seconds", "samples_per_second", "input_wait"}
    return {
        str(step["step"]): {k: v for k, v in step.items() if k not in speed | {"step"}}
        for step in metrics
        if "loss" in step
    }


def make_published() -> None:
    """Tiny published models with LoRA and adapter, converted."""
    import tiny_published
    import torch
    import transformers

    from cotir_jax import cli

    def few_values(model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                start = 1.0 if parameter.ndim == 1 and "norm" in name else 0.0
                steps = torch.round((parameter - start) * 16).clip(-16, 16)
                parameter.copy_(start + steps / 16)
        return model

    original = tiny_published.randomised
    tiny_published.randomised = lambda model: few_values(original(model))
    random_tensors = tiny_published.random_tensors

    def few_random(*args: object) -> dict[str, torch.Tensor]:
        return {k: torch.round(v * 16) / 16 for k, v in random_tensors(*args).items()}

    tiny_published.random_tensors = few_random
    transformers.logging.set_verbosity_error()
    for model, overrides in tiny_published.OVERRIDES.items():
        published = tiny_published.write_folder(Path(f"{model}.published"), model)
        cli.main(
            ["convert", f"--model={model}", f"--base={published}", f"--out={model}",
             f"--overrides={overrides}"]
        )  # fmt: skip


def restored(name: str) -> np.ndarray:
    """What the model folder `name` makes of the picture, `[height, width, 3]` uint8."""
    from cotir_jax.restore import Restorer

    from cotir_jax.checkpoints import model_folder

    folder = model_folder.PACKAGED / "nano" if name == "packaged" else Path(name).absolute()
    image = Restorer.load(folder)(picture(), PROMPT, seed=3).image
    # A flat picture, or the input itself, would show nothing.
    assert image.std() > 2 and np.abs(image.astype(int) - picture()).max() > 2, name
    return image


if __name__ == "__main__":
    main()
