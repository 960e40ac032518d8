"""Text embeddings: ahead of the training step, each text encoded once, or as part of it.

The encoder is frozen. Where the same few thousand prompts and thoughts come back again and again,
they are embedded outside the training step and kept in host memory. Where nearly every text is new,
as in the published benchmark, that would gather the encoder's weights for each of them; then the
step encodes the batch's texts, every device its own.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotir_jax.models.text_encoders.minilm import PACKAGED_FOLDER, load_minilm
from cotir_jax.parallel.sharding import in_rounds
from cotir_jax.text.tokenizer import TextTokenizer, Tokens

# Bounds of one call of the program, whose result is replicated.
_TEXTS_PER_CALL = 32
_BYTES_PER_CALL = 2**28
# Texts that one device encodes at a time within a training step: 16 of Qwen3-4B take 0.5 GB.
_TEXTS_PER_ROUND = 16


class TextEncoder:
    """Text embeddings of fixed length, cached per text.

    The embedding of a text is the same bit for bit whatever else is in the call or was encoded
    before, so a resumed run sees what the uninterrupted one saw. Matrix products of another batch
    size may add in another order; therefore one compiled loop body encodes one text at a time.

    Where the mesh spans processes, all of them must call together, each with as many texts: they
    encode the texts of all, as every device takes part in every text.

    Not for several threads at once.

    Args:
      module: maps ids `[batch, tokens]` int32 (and a mask, same shape, bool) to embeddings
        `[batch, tokens, width]`, or to one vector per text `[batch, width]`.
      tokenizer: the one that the module was trained with; every text gets its number of `tokens`.
      mesh: devices that hold the module's weights; None puts them on one device of this process,
        so that each process encodes its own texts.
      cache_gb: host memory for texts that are kept, the least recently used leave first. Of
        klein-4b a text takes 512 * 7680 * 2 bytes, 8 MB.
      uses_mask: whether the module is called with the mask.

    Raises:
      ValueError: a size out of range, more tokens than the module takes, or a tokenizer with a
        larger vocabulary than the module's `config.vocab_size`, where it has one.
    """

    def __init__(
        self,
        module: nnx.Module,
        tokenizer: TextTokenizer,
        *,
        mesh: Mesh | None = None,
        cache_gb: float = 1.0,
        uses_mask: bool = True,
    ):
        if not 0 <= cache_gb < math.inf:
            raise ValueError(f"got cache_gb={cache_gb}, give 0 (keep nothing) or more")
        vocab_size = getattr(getattr(module, "config", None), "vocab_size", math.inf)
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"{tokenizer.source}: a tokenizer of {tokenizer.vocab_size} tokens, the text "
                f"encoder has {vocab_size}; point to the tokenizer folder that belongs to it"
            )
        self.tokenizer, self.tokens = tokenizer, tokenizer.tokens
        graph, weights = nnx.split(module)
        # The caller's mesh, were it left in force, would copy everything to all its devices.
        self.mesh = mesh or Mesh(np.array(jax.local_devices()[:1]), ("device",))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._weights = jax.device_put(weights, self._everywhere) if mesh is None else weights
        self._shared = any(
            device.process_index != jax.process_index() for device in self.mesh.devices.flat
        )

        def embed(weights: nnx.State, ids: jax.Array, mask: jax.Array) -> jax.Array:
            model = nnx.merge(graph, weights)
            return (model(ids, mask) if uses_mask else model(ids)).astype(jnp.bfloat16)

        one = [jax.ShapeDtypeStruct((1, self.tokens), dtype) for dtype in (jnp.int32, bool)]
        with jax.set_mesh(self.mesh):
            shape = jax.eval_shape(embed, self._weights, *one).shape[1:]
        self._embed = embed
        self._shape, self.width = shape, shape[-1]
        embedding_bytes = 2 * math.prod(shape)
        self._texts_per_call = max(1, min(_TEXTS_PER_CALL, _BYTES_PER_CALL // embedding_bytes))
        # A key is ids and mask.
        self._cache_items = int(cache_gb * 1e9) // (embedding_bytes + 5 * self.tokens)
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._encode = jax.jit(_one_by_one(embed, shape), out_shardings=self._everywhere)

    @classmethod
    def minilm(cls, tokens: int, cache_gb: float = 1.0) -> Self:
        """The packaged MiniLM on one device of this process, `[texts, tokens, 384]`.

        Args:
          tokens: length that every text is padded or cut to, 3 to 512.
          cache_gb: host memory for texts that are kept; at 64 tokens 1 GB holds 20,000.

        Raises:
          ValueError: a size out of range, or a packaged file missing or damaged.
        """
        tokenizer = TextTokenizer(PACKAGED_FOLDER, tokens, "minilm")
        with jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ("device",))):
            module = load_minilm()
        return cls(module, tokenizer, cache_gb=cache_gb)

    def weights(self, mesh: Mesh) -> nnx.State:
        """Returns the weights, for `embed`: where they are, or replicated on another mesh."""
        if mesh == self.mesh:
            return self._weights
        everywhere = NamedSharding(mesh, PartitionSpec())
        return jax.device_put(jax.device_get(self._weights), everywhere)

    def embed(self, weights: nnx.State, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embeddings as part of another program, of batches that the mesh in force splits.

        Every device encodes the texts of its own rows, a few at a time, with weights gathered
        layer by layer; so unlike a call's, the last bits depend on the program around.

        Args:
          weights: from `weights`, for the mesh in force.
          ids: token ids `[kinds, batch, tokens]`, int32.
          mask: True at text, same shape, bool.

        Returns:
          `[kinds, batch, tokens, width]`, or `[kinds, batch, width]`; bfloat16.
        """
        return in_rounds(lambda part: self._embed(weights, *part), (ids, mask), _TEXTS_PER_ROUND)

    def lower(self) -> jax.stages.Lowered:
        """The encoding program, lowered: with abstract weights too, so compile mode can ask it."""
        shape = (self._texts_per_call, self.tokens)
        inputs = [
            jax.ShapeDtypeStruct(size, dtype, sharding=self._everywhere)
            for size, dtype in ((shape, jnp.int32), (shape, bool), ((), jnp.int32))
        ]
        with jax.set_mesh(self.mesh):
            return self._encode.lower(self._weights, *inputs)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids `[texts, tokens]`, int32, and mask `[texts, tokens]`, bool, True at text."""
        return self.tokenizer.tokenize(texts)

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embeddings; of all positions, padding included, as the constraint losses use them.

        Args:
          ids: token ids `[texts, tokens]`, int32.
          mask: True at text, False at padding `[texts, tokens]`, bool.

        Returns:
          `[texts, tokens, width]`, or `[texts, width]` where the module gives one vector per text;
          bfloat16 (rounded, if the module computes in float32).

        Raises:
          ValueError: another shape or dtype, or ids outside the vocabulary.
        """
        ids, mask = np.ascontiguousarray(ids), np.ascontiguousarray(mask)
        self._check(ids, mask)
        own = slice(0, len(ids))
        if self._shared:
            own = slice(jax.process_index() * len(ids), (jax.process_index() + 1) * len(ids))
            with jax.transfer_guard("allow"):
                ids, mask = multihost_utils.process_allgather((ids, mask), tiled=True)
        return self._encode_missing(ids, mask)[own]

    def _encode_missing(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        keys = [i.tobytes() + m.tobytes() for i, m in zip(ids, mask, strict=True)]
        missing = {key: row for row, key in enumerate(keys) if key not in self._cache}
        # This call's texts are held separately, because the cache may keep fewer of them.
        found = {key: self._cache[key] for key in keys if key not in missing}
        for start in range(0, len(missing), self._texts_per_call):
            rows = list(missing.values())[start : start + self._texts_per_call]
            embeddings = self._run(ids[rows], mask[rows])
            # Copies, so that a cached text does not keep its chunk alive.
            found |= {keys[row]: x.copy() for row, x in zip(rows, embeddings, strict=True)}
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_items:
            self._cache.popitem(last=False)
        result = np.empty((len(keys), *self._shape), ml_dtypes.bfloat16)
        for row, key in enumerate(keys):
            result[row] = found[key]
        return result

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        count = len(ids)
        filler = ((0, self._texts_per_call - count), (0, 0))
        inputs = (np.pad(ids, filler), np.pad(mask, filler), np.int32(count))
        with jax.set_mesh(self.mesh):
            # Explicit transfers: the training loop may forbid implicit ones.
            result = self._encode(self._weights, *jax.device_put(inputs, self._everywhere))
            return jax.device_get(result)[:count]

    def _check(self, ids: np.ndarray, mask: np.ndarray) -> None:
        expected = f"expected ids int32 and mask bool, both [texts, {self.tokens}]"
        if ids.ndim != 2 or ids.shape[1] != self.tokens or mask.shape != ids.shape:
            raise ValueError(f"got ids {ids.shape} and mask {mask.shape}, {expected}")
        if ids.dtype != np.int32 or mask.dtype != bool:
            raise ValueError(f"got ids {ids.dtype} and mask {mask.dtype}, {expected}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
            raise ValueError(
                f"got ids {ids.min()} to {ids.max()}, expected 0 to "
                f"{self.tokenizer.vocab_size - 1}: tokenize with the encoder's own tokenizer"
            )


def _one_by_one(
    embed: Callable[..., jax.Array], shape: tuple[int, ...]
) -> Callable[..., jax.Array]:
    """A function of weights, ids, masks and a count: the first `count` texts, each by itself."""

    def encode(weights: nnx.State, ids: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        # A traced count: one program for any number of texts, nothing spent on filler.
        def encode_one(i: jax.Array, embeddings: jax.Array) -> jax.Array:
            one = [jax.lax.dynamic_slice_in_dim(x, i, 1) for x in (ids, mask)]
            return jax.lax.dynamic_update_slice_in_dim(embeddings, embed(weights, *one), i, 0)

        return jax.lax.fori_loop(0, count, encode_one, jnp.zeros((len(ids), *shape), jnp.bfloat16))

    return encode
