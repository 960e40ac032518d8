"""Written thoughts with known labels, and the linear read-out that is fitted on them.

The benchmark's own writer (`bench.thoughts`) writes many scene, degradation and plan sentences from
drawn parameters; the model's text encoder embeds them. A read-out is the ridge regression from
pooled embeddings to what the sentences say: which of the nineteen degradations, how strong, and the
words of the scene. No picture is used.

Why least squares: the adapter's outputs are trained towards the embeddings of the written thoughts
with a squared error (`objective.constraint_losses`), so they estimate the embeddings' mean over all
sentences that fit the picture, and an affine map commutes with that mean. A read-out that gives a
sentence's 0/1 label thus gives the probability of that label for a picture.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cotir_jax.bench.composites import COMPOSITES, SINGLES, sample_chain
from cotir_jax.bench.words import phrases, thoughts
from cotir_jax.bench.words.table import WORDS
from cotir_jax.text.encoder import TextEncoder

STRENGTHS = ("mild", "moderate", "severe")

# The words that `bench.thoughts.describe_scene` chooses from.
SCENE_WORDS: dict[str, tuple[str, ...]] = {
    "brightness": ("very dark", "dark", "medium-bright", "bright", "very bright"),
    "contrast": ("low", "moderate", "strong", "very strong"),
    "detail": ("large smooth areas", "some detail", "much detail", "dense fine texture"),
    "layout": (
        "brighter at the top", "brighter at the bottom", "brighter on the left",
        "brighter on the right", "brighter in the middle", "darker in the middle", "evenly lit",
    ),
    "colour": (
        "no colour",
        *(
            f"{vivid}{hue} tones"
            for vivid in ("muted ", "", "vivid ")
            for hue in ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
        ),
    ),
}  # fmt: skip
_SCENE_COLUMNS = [(kind, word) for kind, words in SCENE_WORDS.items() for word in words]

# Columns of the read-outs of degradation and plan: each degradation, then each at each strength.
_LABELS = len(SINGLES) * (1 + len(STRENGTHS))
# Parameters are drawn for this side in pixels; the numbers in the sentences grow with it.
_SIDES = (96, 176, 256, 512)
# Ridge, relative to the mean variance of a channel, per sentence.
_RIDGE = 1e-2
_CHUNK = 32


class WrittenThoughts(NamedTuple):
    """Sentences and what they say.

    Attributes:
      scenes, degradations, plans: as many sentences each.
      scene_labels: `[sentences, scene words]`, 0 or 1, float32, words in the order of
        `SCENE_WORDS`.
      labels: of degradations and plans, `[sentences, 19 * 4]`, 0 or 1, float32: whether each
        degradation is there, then whether it is there and mild, moderate, severe.
    """

    scenes: list[str]
    degradations: list[str]
    plans: list[str]
    scene_labels: np.ndarray
    labels: np.ndarray


class ReadOut(NamedTuple):
    """Affine maps from pooled thoughts to labels.

    Attributes:
      pooling: weights of the token positions, `[3, tokens]`, each row adding up to 1: how often
        written scene, degradation and plan reach that far.
      scene: `[1 + channels, scene words]`, the first row is the constant; float32.
      degradation: `[1 + channels, 19 * 4]`.
      plan: `[1 + channels, 19 * 4]`.
    """

    pooling: np.ndarray
    scene: np.ndarray
    degradation: np.ndarray
    plan: np.ndarray


def write_thoughts(per_name: int, seed: int = 0) -> WrittenThoughts:
    """Writes sentences for every degradation and composite of the benchmark.

    Args:
      per_name: sentences of a composite; a single degradation gets three times as many, at
        severities spread evenly.
      seed: of parameters and phrases.
    """
    rng = np.random.default_rng(seed)
    names = [name for name in SINGLES for _ in range(3 * per_name)]
    names += [name for name in COMPOSITES for _ in range(per_name)]
    scenes, degradations, plans = [], [], []
    scene_labels = np.zeros((len(names), len(_SCENE_COLUMNS)), np.float32)
    labels = np.zeros((len(names), _LABELS), np.float32)
    for row, name in enumerate(names):
        severity = None if "+" in name else (row % (3 * per_name) + 0.5) / (3 * per_name)
        chain = sample_chain(name, int(rng.choice(_SIDES)), rng, severity)
        degradations.append(thoughts.describe_degradation(chain, rng))
        plans.append(thoughts.describe_plan(chain, rng))
        for step in chain:
            if not step.implied:
                column = SINGLES.index(step.name)
                labels[row, column] = 1
                labels[row, len(SINGLES) + 3 * column + STRENGTHS.index(step.strength)] = 1
        words = {kind: choices[rng.integers(len(choices))] for kind, choices in SCENE_WORDS.items()}
        scene_labels[row] = [words[kind] == word for kind, word in _SCENE_COLUMNS]
        text = str(rng.choice(phrases.SCENES)).format(**words)
        scenes.append(phrases.sentence(f"{text}."))
    return WrittenThoughts(scenes, degradations, plans, scene_labels, labels)


def fit_read_out(encoder: TextEncoder, per_name: int = 12) -> ReadOut:
    """Embeds written thoughts and fits the read-out.

    Args:
      encoder: the model's own.
      per_name: see `write_thoughts`; 12 makes 1380 sentences of each thought.
    """
    written = write_thoughts(per_name)
    pooling, maps = [], []
    all_labels = written.scene_labels, written.labels, written.labels
    for sentences, labels in zip(written[:3], all_labels, strict=True):
        ids, mask = encoder.tokenize(sentences)
        weights = mask.mean(0) / mask.mean(0).sum()
        # Few at a time: of klein-4b an embedding takes 8 MB.
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(ids), _CHUNK)]
        pooled = np.concatenate([pool(encoder(ids[c], mask[c]), weights) for c in chunks])
        pooling.append(weights.astype(np.float32))
        maps.append(_ridge(pooled, labels))
    return ReadOut(np.stack(pooling), *maps)


@jax.jit
def pool(embeddings: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean over positions of L2-normalised embeddings (normalised as in `objective`).

    Args:
      embeddings: `[..., tokens, channels]`.
      weights: `[..., tokens]`, each row adding up to 1.

    Returns:
      `[..., channels]`, float32.
    """
    embeddings = embeddings.astype(jnp.float32)
    squared = jnp.square(embeddings).sum(-1, keepdims=True)
    scale = weights[..., None] / jnp.sqrt(jnp.maximum(squared, 1e-12))
    return (embeddings * scale).sum(-2)


def apply_map(affine: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Labels `[batch, labels]` that an affine map reads from thoughts `[batch, channels]`."""
    return affine[0] + pooled @ affine[1:]


def read_words(scores: np.ndarray) -> dict[str, str]:
    """The most likely word of each kind, from the scores of all scene words `[scene words]`."""
    # Of each kind, the last one stays.
    return {kind: word for _, (kind, word) in sorted(zip(scores, _SCENE_COLUMNS, strict=True))}


def scene_sentence(scores: np.ndarray) -> str:
    """A sentence on the scene, from the scores of all scene words."""
    return phrases.sentence(f"{phrases.SCENES[0].format(**read_words(scores))}.")


def degradation_sentence(named: Sequence[tuple[str, str]]) -> str:
    """What happened to a picture, in the benchmark's phrases but without numbers.

    Args:
      named: (degradation, strength or "") in order of application.
    """
    facts = [_fact(name, strength) for name, strength in named]
    if not facts:
        return "Nothing stands out."
    text = facts[0] if len(facts) == 1 else f"{', '.join(facts[:-1])}, then {facts[-1]}"
    return phrases.sentence(f"{text}.")


def plan_sentence(named: Sequence[tuple[str, str]]) -> str:
    """How to restore the picture: the steps undone, last one first.

    Args:
      named: as in `degradation_sentence`.
    """
    fixes = [_fix(name, strength) for name, strength in reversed(named)]
    if not fixes:
        return "Leave the picture as it is."
    if len(fixes) == 1:
        return phrases.sentence(f"{fixes[0]}.")
    return f"First {', then '.join(fixes)}."


def _fact(name: str, strength: str) -> str:
    # The last phrase of each ends in its numbers, in brackets; noise has its kind before.
    text = re.sub(r" \(.*\)$|{(?!strength)\w+} ", "", WORDS[name].facts[-1])
    return text.format(strength=strength).strip()


def _fix(name: str, strength: str) -> str:
    """A fix whose only blank, if any, is the strength; else one of the prompts' requests."""
    for text in WORDS[name].fixes:
        if set(re.findall(r"{(\w+)}", text)) <= {"strength"}:
            return " ".join(text.format(strength=strength).split())
    return WORDS[name].requests[0]


def _ridge(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Least squares with a penalty: `[1 + channels, labels]`, float32."""
    features, labels = features.astype(np.float64), labels.astype(np.float64)
    mean, level = features.mean(0), labels.mean(0)
    centred = features - mean
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    slopes = np.linalg.solve(gram, centred.T @ (labels - level))
    return np.concatenate([(level - mean @ slopes)[None], slopes]).astype(np.float32)
