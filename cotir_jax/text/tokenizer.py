"""Text to token ids of fixed length, by the `tokenizers` library.

A model folder holds each tokenizer ready to use, as `cotir convert` bakes it:

    tokenizer.json    vocabulary, special tokens, the sides to pad and to cut
    chat.json         only of Qwen3: the text before and after a prompt

A folder with a published tokenizer's own files, which older model folders hold copies of, is read
by `text.published_tokenizer`; that module is imported only then.
"""

import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

_loading = threading.Lock()


class Tokens(NamedTuple):
    """Token ids of one text or of several.

    Attributes:
        ids: int32 ``[tokens]`` or ``[texts, tokens]``.
        mask: bool, same shape, False at padding.
    """

    ids: np.ndarray
    mask: np.ndarray


class BakedTokenizer(NamedTuple):
    """What a folder of a baked tokenizer holds.

    Attributes:
        tokenizer: with the sides to pad and to cut; its lengths are free.
        chat: text before and after a prompt; empty except of Qwen3.
    """

    tokenizer: Tokenizer
    chat: tuple[str, str] = ("", "")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def save(self, folder: Path) -> None:
        """Writes the folder, which must not exist."""
        folder.mkdir(parents=True)
        self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        if any(self.chat):
            (folder / "chat.json").write_text(json.dumps(self.chat) + "\n", "utf-8")


class TextTokenizer:
    """Turns texts into ids and masks; safe to share between threads.

    The library's tokenizer is loaded once in each process, at first use. It is not part of a
    pickle, because it would be sent to every worker.

    Args:
        source: a tokenizer's folder, or a baked ``tokenizer.json``.
        tokens: length that every text is padded or cut to.
        kind: "minilm", "qwen3", "t5" or "clip".

    Raises:
        ValueError: an unknown kind, files that are missing, damaged, or of another model, or no
            room for a text.
    """

    def __init__(self, source: Path | str, tokens: int, kind: str):
        self.source, self.tokens, self.kind = Path(source), tokens, kind
        # Loads it, so that errors appear here and not in a worker.
        self("")

    def __call__(self, text: str) -> Tokens:
        """Tokenizes one text, to ids and mask ``[tokens]``."""
        tokenizer, (before, after) = self._loaded()
        encoding = tokenizer.encode(before + text + after, add_special_tokens=self._marks)
        return Tokens(np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool))

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes several texts, to ids and mask ``[texts, tokens]``."""
        tokenizer, (before, after) = self._loaded()
        wrapped = [before + text + after for text in texts]
        encodings = tokenizer.encode_batch(wrapped, add_special_tokens=self._marks)
        shape = (len(encodings), self.tokens)
        ids = np.array([e.ids for e in encodings], np.int32).reshape(shape)
        return Tokens(ids, np.array([e.attention_mask for e in encodings], bool).reshape(shape))

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._loaded().vocab_size

    @property
    def _marks(self) -> bool:
        """Whether the library adds special tokens; Qwen3's are part of its chat text."""
        return self.kind != "qwen3"

    def _loaded(self) -> BakedTokenizer:
        with _loading:  # once, not once in every thread
            return _load(self.source, self.tokens, self.kind)


@functools.lru_cache(maxsize=8)
def _load(source: Path, tokens: int, kind: str) -> BakedTokenizer:
    """A tokenizer with its lengths set."""
    loaded = _read_baked(source, kind)
    if loaded is None:
        from cotir_jax.text.published_tokenizer import read_tokenizer

        loaded = read_tokenizer(source, kind)
    tokenizer = loaded.tokenizer
    marks = tokenizer.num_special_tokens_to_add(False)
    if tokens <= marks:
        raise ValueError(f"got {tokens} tokens per text; give {marks + 1} or more")
    truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
    tokenizer.enable_truncation(tokens, direction=truncation["direction"])
    same = {name: padding[name] for name in ("direction", "pad_id", "pad_token")}
    tokenizer.enable_padding(length=tokens, **same)
    return loaded


def _read_baked(source: Path, kind: str) -> BakedTokenizer | None:
    """The tokenizer of a baked folder; None where the files are published ones."""
    file = source / "tokenizer.json" if source.is_dir() else source
    chat_file = file.with_name("chat.json")
    if (
        not file.is_file()
        or file.with_name("tokenizer_config.json").exists()
        or (kind == "qwen3" and not chat_file.is_file())
    ):
        return None
    try:
        baked = BakedTokenizer(Tokenizer.from_file(str(file)))
        if kind == "qwen3":
            before, after = json.loads(chat_file.read_text("utf-8"))
            baked = baked._replace(chat=(before, after))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"{source}: no readable {kind} tokenizer ({error}); convert the model again"
        ) from error
    return baked if baked.tokenizer.padding and baked.tokenizer.truncation else None
