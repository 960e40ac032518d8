"""Chooses the floors of nano's head (`models/nano_head.py`) and makes them a layer of its weights.

    python tests/benchmarks/nano_floors.py MODEL OUT --photos=BSDS

With the floors off, degraded photos in other colours (in their own for degradations that take
colours away) are restored; each single degradation gets the floors of luma and colour, in grey
levels, whose result has the highest mean of PSNR in dB + 40 SSIM, a composite the lowest of its
parts, a vague prompt 1.5. Ridge regressions from the mean embedding of prompts to the logarithms of
the floors are the layer. Prints the floors as JSON, with the root mean square of the regressions'
errors on a fifth of the prompts, held out.
"""

import argparse
import functools
import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from cotir_jax.bench.composites import SEEN, SINGLES, folder_name, parts_of
from cotir_jax.bench.plan import Plan, make_plan, make_sample, prompts_of
from cotir_jax.checkpoints import model_folder
from cotir_jax.data.fresh_samples import COLOURLESS
from cotir_jax.data.prompts import VAGUE_FILE
from cotir_jax.images.pictures import load_picture
from cotir_jax.models.nano_head import FLOOR_REST, FLOOR_WINDOW, LUMA
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.scoring import full_reference
from cotir_jax.text.encoders import encode_prompts

FLOORS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 11, 15, 20, 30, 60)
VAGUE = (1.5, 1.5)
DECIBELS_PER_SSIM = 40
PENALTY = 1e-2  # of the mean variance of the embeddings


def best_floors(restorer: Restorer, plan: Plan, name: str, samples: int) -> tuple[float, float]:
    """The best of `FLOORS` for a degradation's luma and colour; the restorer's own must be off."""
    recoloured = 0.0 if name in COLOURLESS else 1.0
    job = replace(plan.job("train", name, range(samples)), recoloured=recoloured)
    made = [make_sample(job, number, compress_level=0) for number in job.numbers]
    pictures = []
    for sample in made:
        clean, degraded = load_picture(sample.hq), load_picture(sample.lq)
        restored = restorer(degraded, sample.meta["cot"]["questions"][1]).image
        change = restored.astype(np.float64) - degraded
        luma = (change @ np.array(LUMA))[..., None]
        pictures.append((clean, degraded, luma, change - luma))

    @functools.cache
    def merit(*floors: float) -> float:
        total = 0.0
        for clean, degraded, *parts in pictures:
            kept = sum(map(_above_floor, parts, floors))
            result = np.rint(np.clip(degraded + kept, 0, 255)).astype(np.uint8)
            total += full_reference.psnr(result, clean)
            total += DECIBELS_PER_SSIM * full_reference.ssim(result, clean)
        return total

    # One floor for both, then each in turn.
    luma, colour = max(((floor, floor) for floor in FLOORS), key=lambda pair: merit(*pair))
    for _ in range(2):
        luma = max(FLOORS, key=lambda floor: merit(floor, colour))
        colour = max(FLOORS, key=lambda floor: merit(luma, floor))
    return luma, colour


def _above_floor(part: np.ndarray, floor: float) -> np.ndarray:
    """What `models/nano_head.py` keeps of a part of the correction, `[height, width, channels]`."""
    energy = np.square(part).mean(axis=2, keepdims=True)
    energy = ndimage.uniform_filter(energy, (FLOOR_WINDOW, FLOOR_WINDOW, 1), mode="nearest")
    return part * (energy + FLOOR_REST * min(floor, 1) ** 2) / (energy + floor**2)


def prompts_with_floors(
    plan: Plan, floors: dict[str, tuple[float, float]], prompts: int
) -> list[tuple[str, tuple[float, ...]]]:
    """Precise prompts of all degradations, three times as many of single ones, and vague ones.

    Half are samples' own, half lines of the prompt files, as in training.
    """
    plan = replace(plan, size=32)
    lines = prompts_of(plan)
    vague_lines = lines.pop(VAGUE_FILE)
    rows: list[tuple[str, tuple[float, ...]]]
    rows = [(line, VAGUE) for line in vague_lines * (1 + prompts // 10)]
    for name in (*SINGLES, *SEEN):
        count = prompts if "+" in name else 3 * prompts
        job = plan.job("train", name, range(count))
        lowest = tuple(map(min, zip(*(floors[part] for part in parts_of(name)), strict=True)))
        own_lines = lines[folder_name(name)]
        rows += [(own_lines[number % len(own_lines)], lowest) for number in job.numbers]
        for number in job.numbers:
            meta = make_sample(job, number, compress_level=0).meta
            vague, precise = meta["cot"]["questions"]
            rows.append((precise, lowest))
            if number % 8 == 0:
                rows.append((vague, VAGUE))
    return rows


def embed(restorer: Restorer, prompts: list[str]) -> np.ndarray:
    """Mean embeddings `[prompts, channels]`."""
    parts = [prompts[start : start + 256] for start in range(0, len(prompts), 256)]
    found = [encode_prompts(restorer.encoders, part).embeddings for part in parts]
    return np.concatenate([np.asarray(part, np.float64).mean(axis=1) for part in found])


def regress(embeddings: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[channels, targets]` and biases `[targets]` of ridge regressions."""
    mean = embeddings.mean(axis=0)
    centred = embeddings - mean
    covariance = centred.T @ centred / len(centred)
    covariance += PENALTY * np.trace(covariance) / len(mean) * np.eye(len(mean))
    moments = centred.T @ (targets - targets.mean(axis=0)) / len(centred)
    weights = np.linalg.solve(covariance, moments)
    return weights, targets.mean(axis=0) - mean @ weights


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", help="folder; default: those inside scikit-image")
    parser.add_argument("--samples", type=int, default=12, help="of each single degradation")
    parser.add_argument("--prompts", type=int, default=80, help="of each composite")
    parser.add_argument("--size", type=int, default=256, help="side of the samples")
    flags = parser.parse_args()
    plan = make_plan(flags.photos, degradations="all", size=flags.size, seed=41)

    restorer = Restorer.load(flags.model)
    layer = restorer.weights[0]["detail"]["floor"]
    layer["kernel"][...] = jnp.zeros_like(layer["kernel"][...])
    layer["bias"][...] = jnp.full_like(layer["bias"][...], -20.0)
    floors = {name: best_floors(restorer, plan, name, flags.samples) for name in SINGLES}

    rows = prompts_with_floors(plan, floors, flags.prompts)
    embeddings = embed(restorer, [prompt for prompt, _ in rows])
    targets = np.log([wanted for _, wanted in rows])
    held = np.arange(len(rows)) % 5 == 0
    weights, biases = regress(embeddings[~held], targets[~held])
    error = np.sqrt(np.mean(np.square(embeddings[held] @ weights + biases - targets[held])))

    layer["kernel"][...] = jnp.asarray(weights, jnp.float32)
    layer["bias"][...] = jnp.asarray(biases, jnp.float32)
    model, _ = restorer.merge(restorer.weights)
    notes = json.loads((restorer.folder / "model.json").read_text())["notes"]
    model_folder.save_model(flags.out, model, notes)
    print(json.dumps({"floors": floors, "prompts": len(rows), "held_out_error": round(error, 3)}))


if __name__ == "__main__":
    main()
