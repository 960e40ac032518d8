"""all-MiniLM-L6-v2, the small frozen text encoder of the nano model, in Flax NNX.

BERT with post-norm blocks (Devlin et al. 2018, arXiv 1810.04805), 6 layers, 384 wide, distilled
(MiniLM, arXiv 2002.10957) and tuned on sentence pairs. CoTIR needs an embedding per token, so the
last hidden states are returned as they are: no pooling, no normalisation.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cotir_jax.models.layers import scan_blocks, stack_blocks
from cotir_jax.models.text_encoders.shared import check_ids, layer_norm

PACKAGED_FOLDER = Path(__file__).parents[2] / "weights" / "minilm"
_FIX = "reinstall cotir_jax or rebuild the folder with cotir_jax.conversion.minilm"


@dataclasses.dataclass(frozen=True)
class MiniLMConfig:
    """Sizes of a BERT encoder; the defaults are all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    max_tokens: int = 512
    hidden_size: int = 384
    mlp_size: int = 1536
    num_heads: int = 12
    num_layers: int = 6
    layer_norm_eps: float = 1e-12


def _layer_norm(config: MiniLMConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layer_norm(config.hidden_size, config.layer_norm_eps, "float32", rngs)


class MiniLMLayer(nnx.Module):
    """Self-attention, then the MLP; each adds to its input and normalises the sum."""

    def __init__(self, config: MiniLMConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.qkv = nnx.Linear(config.hidden_size, 3 * config.hidden_size, rngs=rngs)
        self.attention_out = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.attention_norm = _layer_norm(config, rngs)
        self.mlp_in = nnx.Linear(config.hidden_size, config.mlp_size, rngs=rngs)
        self.mlp_out = nnx.Linear(config.mlp_size, config.hidden_size, rngs=rngs)
        self.mlp_norm = _layer_norm(config, rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens `[batch, tokens, hidden_size]` float32 and mask `[batch, tokens]` to tokens."""
        batch, length, width = tokens.shape
        heads = (batch, length, self.num_heads, width // self.num_heads)
        query, key, value = (x.reshape(heads) for x in jnp.split(self.qkv(tokens), 3, axis=-1))
        # Only keys are masked: rows of padding attend to the text and get embeddings too.
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
        tokens = self.attention_norm(tokens + self.attention_out(attended.reshape(tokens.shape)))
        # BERT's GELU is the exact one; the tanh form is off by up to 5e-4.
        mlp = self.mlp_out(jax.nn.gelu(self.mlp_in(tokens), approximate=False))
        return self.mlp_norm(tokens + mlp)


class MiniLM(nnx.Module):
    """Token embeddings from token ids; `load_minilm` fills it with the released weights."""

    def __init__(self, config: MiniLMConfig, *, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, config.hidden_size)))

        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_tokens)
        self.token_type_embeddings = table(2)
        self.embedding_norm = _layer_norm(config, rngs)

        self.layers = stack_blocks(
            lambda rngs: MiniLMLayer(config, rngs=rngs), config.num_layers, rngs
        )

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Last hidden states, padding positions included.

        Args:
          ids: token ids `[batch, tokens]`, int32, tokens at most `max_tokens`.
          mask: True at text, False at padding `[batch, tokens]`, bool.

        Returns:
          Hidden states `[batch, tokens, hidden_size]`, float32, root mean square about 0.4.

        Raises:
          ValueError: more tokens than there are position embeddings.
        """
        length = ids.shape[1]
        check_ids(ids, mask, self.position_embeddings.shape[0], "MiniLM")
        # True float32: by default GPUs multiply in TF32 and TPUs in bfloat16.
        with jax.default_matmul_precision("highest"):
            embedded = self.word_embeddings[...][ids]
            embedded += self.position_embeddings[:length][None]
            embedded += self.token_type_embeddings[0][None, None]
            return scan_blocks(self.layers, self.embedding_norm(embedded), mask, remat="none")


# Ours -> published: modules and tables; with {} one per layer, stacked. Published linears are
# [out, in], ours [in, out].
_LAYER = "encoder.layer.{}."
_NAMES = {
    "embedding_norm": "embeddings.LayerNorm",
    "layers.attention_out": f"{_LAYER}attention.output.dense",
    "layers.attention_norm": f"{_LAYER}attention.output.LayerNorm",
    "layers.mlp_in": f"{_LAYER}intermediate.dense",
    "layers.mlp_out": f"{_LAYER}output.dense",
    "layers.mlp_norm": f"{_LAYER}output.LayerNorm",
    "word_embeddings": "embeddings.word_embeddings.weight",
    "position_embeddings": "embeddings.position_embeddings.weight",
    "token_type_embeddings": "embeddings.token_type_embeddings.weight",
}
# Joined along their outputs in `layers.qkv`.
_QKV = tuple(f"{_LAYER}attention.self.{part}" for part in ("query", "key", "value"))
_SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


def load_minilm(folder: str | Path | None = None) -> MiniLM:
    """Builds the encoder from `config.json` and `model.safetensors`, float32 in memory.

    Args:
      folder: where the two files are; the packaged weights when None.

    Raises:
      ValueError: a file is missing, damaged, or holds other names or shapes than the config says.
    """
    folder = PACKAGED_FOLDER if folder is None else Path(folder)
    config = _read_config(folder / "config.json")
    file = folder / "model.safetensors"
    try:
        published = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read MiniLM weights {file} ({error}): {_FIX}") from error
    model = nnx.eval_shape(lambda: MiniLM(config, rngs=nnx.Rngs(0)))
    graph, abstract = nnx.split(model)
    filled, problems = [], []
    for path, wanted in nnx.to_flat_state(abstract):
        value = _take(published, path, config.num_layers)
        if value is None or value.shape != wanted.shape:
            got = "nothing" if value is None else f"shape {value.shape}"
            problems.append(f"{'.'.join(path)}: {got}, expected {wanted.shape}")
        else:
            filled.append((path, wanted.replace(jax.device_put(value))))
    problems += [f"{name}: unknown" for name in published]
    if problems:
        raise ValueError(f"MiniLM weights {file} do not fit: {'; '.join(problems)}: {_FIX}")
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _read_config(file: Path) -> MiniLMConfig:
    try:
        fields = json.loads(file.read_text())
        kind = (fields["model_type"], fields["hidden_act"], fields["position_embedding_type"])
        if kind != ("bert", "gelu", "absolute"):
            raise ValueError(f"model, activation, positions are {kind}")
        return MiniLMConfig(
            vocab_size=fields["vocab_size"],
            max_tokens=fields["max_position_embeddings"],
            hidden_size=fields["hidden_size"],
            mlp_size=fields["intermediate_size"],
            num_heads=fields["num_attention_heads"],
            num_layers=fields["num_hidden_layers"],
            layer_norm_eps=fields["layer_norm_eps"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot use MiniLM config {file} ({error!r}): {_FIX}") from error


def _take(
    published: dict[str, np.ndarray], path: tuple[str, ...], num_layers: int
) -> np.ndarray | None:
    """Moves one parameter of ours out of `published`; None where parts are missing or unlike."""
    suffix = _SUFFIXES.get(path[-1], "")
    module = ".".join(path[:-1] if suffix else path)
    names = [name + suffix for name in (_QKV if module == "layers.qkv" else [_NAMES[module]])]
    layers = range(num_layers) if path[0] == "layers" else range(1)
    parts = [[published.pop(name.format(i), None) for name in names] for i in layers]
    flat = [part for layer in parts for part in layer]
    if any(part is None or part.ndim == 0 or part.shape != flat[0].shape for part in flat):
        return None
    stacked = np.stack([np.concatenate(layer).astype(np.float32) for layer in parts])
    if path[-1] == "kernel":
        stacked = np.swapaxes(stacked, -1, -2)
    return stacked if path[0] == "layers" else stacked[0]
