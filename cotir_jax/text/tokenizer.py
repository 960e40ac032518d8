"""Text to token ids of fixed length, by the `tokenizers` library, as transformers has them.

A tokenizer is a folder as published models have it: `tokenizer.json` (or, for CLIP, `vocab.json`
and `merges.txt`), `tokenizer_config.json`, `special_tokens_map.json` and, for Qwen3, the chat
template in which prompts are wrapped.
"""

import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import RobertaProcessing

# Tokens by which a folder of another model is told apart.
_NEEDED = {
    "minilm": ("[CLS]", "[PAD]"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "t5": ("</s>", "<pad>"),
    "clip": ("<|startoftext|>", "<|endoftext|>"),
}
# Named tokens where the folder is silent: those of the model's class in transformers.
_NAMED = {
    "minilm": {"pad_token": "[PAD]"},
    "qwen3": {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "t5": {"pad_token": "<pad>", "eos_token": "</s>"},
    "clip": {
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    },
}
_ALL_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# How CLIP cuts a text into words before it looks for pairs (Radford et al. 2021, its tokenizer).
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_loading = threading.Lock()


class TextTokenizer:
    """Turns texts into ids and masks; safe to share between threads.

    The library's tokenizer is loaded once in each process, in a worker at first use, and is no part
    of a pickle: it would be sent to every worker.

    Attributes:
        source, tokens, kind: as given.
    """

    def __init__(self, source: Path | str, tokens: int, kind: str):
        """
        Args:
            source: a tokenizer folder, or a ``tokenizer.json``.
            tokens: length that every text is padded or cut to.
            kind: "minilm", "qwen3", "t5" or "clip".

        Raises:
            ValueError: an unknown kind, files that are missing, damaged, or of another model, or no
                room for a text.
        """
        if kind not in _NEEDED:
            raise ValueError(f"tokenizer kind {kind!r}: accepted are {', '.join(_NEEDED)}")
        self.source, self.tokens, self.kind = Path(source), tokens, kind
        # Whatever is wrong shows here and not in a worker.
        self("")

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 ``[tokens]`` and mask bool ``[tokens]``, False at padding."""
        loaded = self._loaded()
        encoding = loaded.tokenizer.encode(self._wrap(loaded, text), **self._options())
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 ``[texts, tokens]`` and mask bool ``[texts, tokens]``, False at padding."""
        loaded = self._loaded()
        wrapped = [self._wrap(loaded, text) for text in texts]
        encodings: list[Encoding] = loaded.tokenizer.encode_batch(wrapped, **self._options())
        shape = (len(encodings), self.tokens)
        ids = np.array([e.ids for e in encodings], np.int32).reshape(shape)
        return ids, np.array([e.attention_mask for e in encodings], bool).reshape(shape)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._loaded().vocab_size

    def _loaded(self) -> "_Loaded":
        with _loading:  # not once in every thread
            return _load(self.source, self.tokens, self.kind)

    def _options(self) -> dict[str, bool]:
        # The chat template writes Qwen3's own marks.
        return {"add_special_tokens": self.kind != "qwen3"}

    def _wrap(self, loaded: "_Loaded", text: str) -> str:
        if loaded.template is None:
            return text
        try:
            return loaded.template.render(
                messages=[{"role": "user", "content": text}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                enable_thinking=False,
                **loaded.named,
            )
        except Exception as error:  # whatever the template does
            raise ValueError(
                f"{self.source}: its chat template fails ({_line(error)}); fetch it again"
            ) from error


class _Refusal(ValueError):
    """A line of ours that says what is wrong and how to mend it."""


class _Loaded(NamedTuple):
    tokenizer: Tokenizer
    template: Any  # of jinja2; None where texts go in as they are
    named: dict[str, str]  # special tokens by name
    vocab_size: int


@lru_cache(maxsize=8)
def _load(source: Path, tokens: int, kind: str) -> _Loaded:
    if not source.exists():
        raise _Refusal(f"{source}: no such file or folder; name the {kind} tokenizer's folder")
    try:
        return _read(source, tokens, kind)
    except _Refusal:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise _Refusal(
            f"{source}: no readable {kind} tokenizer ({_line(error)}); fetch it again"
        ) from error


def _read(source: Path, tokens: int, kind: str) -> _Loaded:
    folder, file = source.parent, source
    if source.is_dir():
        folder, file = source, source / "tokenizer.json"
    settings = _read_settings(folder, kind)
    named = {name: _content(settings[name]) for name in _ALL_NAMED if name in settings}
    from_pairs = not file.is_file()
    if not from_pairs:
        tokenizer = Tokenizer.from_file(str(file))
    elif kind == "clip" and all((folder / n).is_file() for n in ("vocab.json", "merges.txt")):
        tokenizer = _build_clip(folder, named)
    else:
        raise _Refusal(_missing(folder, kind))
    _check_kind(tokenizer, source, kind)
    _add_tokens(tokenizer, settings)
    if from_pairs:
        _mark_clip(tokenizer, named)
    template = _read_template(folder, settings) if kind == "qwen3" else None
    _fix_length(tokenizer, source, tokens, settings, named["pad_token"])
    return _Loaded(tokenizer, template, named, max(tokenizer.get_vocab().values()) + 1)


def _fix_length(
    tokenizer: Tokenizer, source: Path, tokens: int, settings: dict[str, Any], pad_token: str
) -> None:
    """Makes it pad and cut, on the sides that the folder says."""
    marks = tokenizer.num_special_tokens_to_add(False)
    if tokens <= marks:
        raise _Refusal(f"got {tokens} tokens per text; give {marks + 1} or more")
    side = {}
    for name, own in (("truncation", tokenizer.truncation), ("padding", tokenizer.padding)):
        found = settings.get(f"{name}_side") or (own or {}).get("direction", "right")
        if found not in ("left", "right"):
            raise _Refusal(f"{source}: {name}_side is {found!r}, expected left or right")
        side[name] = found
    tokenizer.enable_truncation(tokens, direction=side["truncation"])
    tokenizer.enable_padding(
        length=tokens,
        pad_id=tokenizer.token_to_id(pad_token),
        pad_token=pad_token,
        direction=side["padding"],
    )


def _check_kind(tokenizer: Tokenizer, source: Path, kind: str) -> None:
    missing = [token for token in _NEEDED[kind] if tokenizer.token_to_id(token) is None]
    if missing:
        raise _Refusal(
            f"{source}: no {kind} tokenizer, it lacks {' and '.join(missing)}; point to the "
            f"tokenizer folder of the {kind} text encoder"
        )


def _missing(folder: Path, kind: str) -> str:
    if (folder / "spiece.model").is_file():
        return (
            f"{folder}: has spiece.model but no tokenizer.json; write it with transformers: "
            "T5TokenizerFast.from_pretrained(folder).save_pretrained(folder)"
        )
    files = "tokenizer.json" + (", nor vocab.json and merges.txt" if kind == "clip" else "")
    return f"{folder}: no {files}; fetch the {kind} model's whole tokenizer folder"


def _read_settings(folder: Path, kind: str) -> dict[str, Any]:
    settings = _read_json(folder / "tokenizer_config.json")
    # As transformers: where the newer table is there, the older file no longer counts.
    if "added_tokens_decoder" not in settings:
        settings |= _read_json(folder / "special_tokens_map.json")
    return _NAMED[kind] | {name: value for name, value in settings.items() if value is not None}


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Refusal(f"{file}: no readable JSON ({_line(error)}); fetch it again") from error
    if not isinstance(found, dict):
        raise _Refusal(f"{file}: no JSON object; fetch it again")
    return found


def _content(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def _add_tokens(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Adds what the folder names beside the tokenizer's own; ids of the vocabulary stay."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    table = settings.get("added_tokens_decoder", {})
    listed = [_added_token(table[index]) for index in sorted(table, key=int)]
    tokenizer.add_tokens([token for token in listed if token.content not in known])
    known |= {token.content for token in listed}
    named = [_added_token(settings[name]) for name in _ALL_NAMED if name in settings]
    # Of two names for one token the later counts, as in transformers.
    tokenizer.add_tokens([token for token in named if token.content not in known])


def _added_token(token: str | dict[str, Any]) -> AddedToken:
    flags = {"special": True, "normalized": False}
    if isinstance(token, dict):
        names = ("special", "normalized", "single_word", "lstrip", "rstrip")
        flags |= {name: token[name] for name in names if name in token}
    return AddedToken(_content(token), **flags)


def _build_clip(folder: Path, named: dict[str, str]) -> Tokenizer:
    """The tokenizer that transformers makes of vocabulary and merges: lower case, byte pairs."""
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = Tokenizer(
        models.BPE.from_file(*files, unk_token=named["unk_token"], end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = norm.Sequence(
        [norm.NFC(), norm.Replace(Regex(r"\s+"), " "), norm.Lowercase()]
    )
    words = pre.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _mark_clip(tokenizer: Tokenizer, named: dict[str, str]) -> None:
    """Puts the marks around a text, once they have ids."""
    end, start = (
        (named[name], tokenizer.token_to_id(named[name])) for name in ("eos_token", "bos_token")
    )
    tokenizer.post_processor = RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )


def _read_template(folder: Path, settings: dict[str, Any]) -> Any:
    """The folder's chat template, compiled in a sandbox, as it is code from elsewhere."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file = folder / "chat_template.jinja"
    source = settings.get("chat_template")
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    elif isinstance(source, list):  # several, by name
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    if not isinstance(source, str):
        raise _Refusal(
            f"{folder}: no chat template in chat_template.jinja or tokenizer_config.json; fetch "
            "the qwen3 model's whole tokenizer folder"
        )
    # What transformers gives templates, but the date: a text must always have the same ids.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals["raise_exception"] = _fail
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise _Refusal(
            f"{folder}: no readable chat template ({_line(error)}); fetch it again"
        ) from error


def _fail(message: str) -> None:
    raise ValueError(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
