"""Text to token ids of fixed length, by the `tokenizers` library."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

# Padding tokens of BERT, T5, and Qwen3, whose files need not say which token pads.
_PADDING = ("[PAD]", "<pad>", "<|endoftext|>")


class TextTokenizer:
    """Turns a text into ``(ids, mask)``; safe to share between threads and to pickle.

    The tokenizer is loaded at first use, in each process by itself: pickled, it would be sent to
    every worker.
    """

    def __init__(self, file: Path | str, tokens: int):
        """
        Args:
            file: a Hugging Face ``tokenizer.json``.
            tokens: length that every text is padded or cut to.

        Raises:
            ValueError: no such file, or no room for a token.
        """
        self.file, self.tokens = Path(file), tokens
        if not self.file.is_file():
            raise ValueError(f"{file}: no such file; name a tokenizer.json")
        if tokens < 1:
            raise ValueError(f"got {tokens} tokens per text; give 1 or more")
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 ``[tokens]`` and mask bool ``[tokens]``, False at padding."""
        if self._tokenizer is None:
            with self._lock:
                if self._tokenizer is None:
                    self._tokenizer = _load(self.file, self.tokens)
        encoding = self._tokenizer.encode(text)
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "tokens": self.tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _load(file: Path, tokens: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file}: no readable tokenizer ({error}); fetch it again") from error
    if tokenizer.padding:
        pad_id, pad_token = tokenizer.padding["pad_id"], tokenizer.padding["pad_token"]
    else:
        known = [name for name in _PADDING if tokenizer.token_to_id(name) is not None]
        if not known:
            raise ValueError(f"{file}: says no padding token and has none of {', '.join(_PADDING)}")
        pad_id, pad_token = tokenizer.token_to_id(known[0]), known[0]
    tokenizer.enable_truncation(tokens)
    # Explicitly on the right: the mask then is a prefix, as the encoders expect.
    tokenizer.enable_padding(length=tokens, pad_id=pad_id, pad_token=pad_token, direction="right")
    return tokenizer
