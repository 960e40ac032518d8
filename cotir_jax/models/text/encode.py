"""Text embeddings ahead of the training step, each text encoded once.

The encoder is frozen and the same few thousand prompts and thoughts come back again and again, so
they are embedded outside the training step and kept in host memory.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from cotir_jax.models.text.minilm import PACKAGED_FOLDER, load_minilm

_TEXTS_PER_CALL = 32


class TextEncoder:
    """MiniLM token embeddings of fixed length, cached per text.

    The embedding of a text is the same bit for bit whatever else is in the call or was encoded
    before, so a resumed run sees what the uninterrupted one saw. Matrix products of another batch
    size may add in another order; therefore one compiled loop body encodes one text at a time.
    Not for several threads at once.
    """

    def __init__(self, tokens: int, cache_items: int = 8192):
        """Loads the packaged weights and tokenizer.

        Args:
          tokens: length that every text is padded or cut to, 2 to 512.
          cache_items: texts kept, the least recently used leave first; one takes
            tokens * width * 2 bytes (8192 texts of 64 tokens: 403 MB).

        Raises:
          ValueError: a size out of range, or a packaged file missing or damaged.
        """
        # Each process encodes its own texts on one device of its own. The loop's mesh, were it left
        # in force, would copy everything to all devices and make the processes wait for each other.
        self._device = jax.local_devices()[0]
        self._mesh = jax.sharding.Mesh(np.array([self._device]), ("device",))
        with jax.set_mesh(self._mesh):
            model = load_minilm()
        vocab_size, self.width = model.word_embeddings.shape
        max_tokens = model.position_embeddings.shape[0]
        if not 2 <= tokens <= max_tokens:
            raise ValueError(f"got tokens={tokens}, MiniLM takes 2 to {max_tokens}")
        if cache_items < 0:
            raise ValueError(f"got cache_items={cache_items}, give 0 (keep nothing) or more")
        self.tokens = tokens
        self.tokenizer_file: Path = PACKAGED_FOLDER / "tokenizer.json"
        self._tokenizer = _load_tokenizer(self.tokenizer_file, tokens)
        self._vocab_size = vocab_size
        self._cache_items = cache_items
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        graph, weights = nnx.split(model)
        self._weights = jax.device_put(weights, self._device)

        @jax.jit
        def encode(
            weights: nnx.State, ids: jax.Array, mask: jax.Array, count: jax.Array
        ) -> jax.Array:
            # A traced count: one program for any number of texts, nothing spent on filler.
            def encode_one(i: jax.Array, embeddings: jax.Array) -> jax.Array:
                one = [jax.lax.dynamic_slice_in_dim(x, i, 1) for x in (ids, mask)]
                hidden = nnx.merge(graph, weights)(*one).astype(jnp.bfloat16)
                return jax.lax.dynamic_update_slice_in_dim(embeddings, hidden, i, 0)

            empty = jnp.zeros((*ids.shape, self.width), jnp.bfloat16)
            return jax.lax.fori_loop(0, count, encode_one, empty)

        self._encode = encode

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids `[texts, tokens]`, int32, and mask `[texts, tokens]`, bool, True at text."""
        encodings = self._tokenizer.encode_batch(list(texts))
        shape = (len(encodings), self.tokens)
        ids = np.array([e.ids for e in encodings], np.int32).reshape(shape)
        mask = np.array([e.attention_mask for e in encodings], bool).reshape(shape)
        return ids, mask

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embeddings of all positions, padding included, as the constraint losses use them.

        Args:
          ids: token ids `[texts, tokens]`, int32.
          mask: True at text, False at padding `[texts, tokens]`, bool.

        Returns:
          Text embeddings `[texts, tokens, width]`, bfloat16 (computed in float32, then rounded).

        Raises:
          ValueError: another shape or dtype, or ids outside the vocabulary.
        """
        ids, mask = np.ascontiguousarray(ids), np.ascontiguousarray(mask)
        self._check(ids, mask)
        keys = [i.tobytes() + m.tobytes() for i, m in zip(ids, mask, strict=True)]
        missing = {key: row for row, key in enumerate(keys) if key not in self._cache}
        # This call's texts are held apart, as it may bring more of them than the cache keeps.
        found = {key: self._cache[key] for key in keys if key not in missing}
        for start in range(0, len(missing), _TEXTS_PER_CALL):
            rows = list(missing.values())[start : start + _TEXTS_PER_CALL]
            embeddings = self._run(ids[rows], mask[rows])
            # Copies, so that a cached text does not keep its whole chunk alive.
            found |= {keys[row]: x.copy() for row, x in zip(rows, embeddings, strict=True)}
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_items:
            self._cache.popitem(last=False)
        result = np.empty((len(keys), self.tokens, self.width), ml_dtypes.bfloat16)
        for row, key in enumerate(keys):
            result[row] = found[key]
        return result

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        count = len(ids)
        filler = ((0, _TEXTS_PER_CALL - count), (0, 0))
        inputs = (np.pad(ids, filler), np.pad(mask, filler), np.int32(count))
        with jax.set_mesh(self._mesh):
            # Explicit transfers: the training loop may forbid implicit ones.
            result = self._encode(self._weights, *jax.device_put(inputs, self._device))
            return jax.device_get(result)[:count]

    def _check(self, ids: np.ndarray, mask: np.ndarray) -> None:
        expected = f"expected ids int32 and mask bool, both [texts, {self.tokens}]"
        if ids.ndim != 2 or ids.shape[1] != self.tokens or mask.shape != ids.shape:
            raise ValueError(f"got ids {ids.shape} and mask {mask.shape}, {expected}")
        if ids.dtype != np.int32 or mask.dtype != bool:
            raise ValueError(f"got ids {ids.dtype} and mask {mask.dtype}, {expected}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise ValueError(
                f"got ids {ids.min()} to {ids.max()}, expected 0 to {self._vocab_size - 1}: "
                "tokenize with MiniLM's own tokenizer"
            )


def _load_tokenizer(file: Path, tokens: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"cannot read tokenizer {file} ({error}): reinstall cotir_jax") from error
    # The published file cuts and pads to 128.
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=tokenizer.token_to_id("[PAD]"))
    return tokenizer
