"""Text to token ids of fixed length, by the `tokenizers` library."""

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

# Padding tokens of BERT, T5, and Qwen3, whose files need not say which token pads.
_PADDING = ("[PAD]", "<pad>", "<|endoftext|>")
_loading = threading.Lock()


class TextTokenizer:
    """Turns a text into ``(ids, mask)``; safe to share between threads.

    The library's tokenizer is loaded at first use, once in each process, and is no part of a
    pickle: it would be sent to every worker.
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

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 ``[tokens]`` and mask bool ``[tokens]``, False at padding."""
        with _loading:  # not once in every thread
            tokenizer = _load(self.file, self.tokens)
        encoding = tokenizer.encode(text)
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)


@lru_cache(maxsize=4)
def _load(file: Path, tokens: int) -> Tokenizer:
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
