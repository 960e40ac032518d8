"""Tokenizers as published models have them, read to the ids that transformers gives.

A folder holds `tokenizer.json` (or, for CLIP, `vocab.json` and `merges.txt`),
`tokenizer_config.json`, `special_tokens_map.json` and, for Qwen3, the chat template in which
prompts are wrapped. `cotir convert` reads such a folder once and bakes it for `text.tokenizer`,
which calls this module only for model folders that hold the published files themselves.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import RobertaProcessing

from cotir_jax.files import one_line
from cotir_jax.text.tokenizer import BakedTokenizer

# Tokens by which a folder of another model is recognised.
_NEEDED = {
    "minilm": ("[CLS]", "[PAD]"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "t5": ("</s>", "<pad>"),
    "clip": ("<|startoftext|>", "<|endoftext|>"),
}
# Named tokens where the folder names none: those of the model's class in transformers.
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
# Prompts that a chat template must leave as they are.
_PROBES = ("", "restore", "  Two\n\nlines. \n", "<tool_response>\na\n</tool_response>", "{{ b }}")


class _Refusal(ValueError):
    """A line of ours that says what is wrong and how to fix it."""


def read_tokenizer(source: Path, kind: str) -> BakedTokenizer:
    """Reads a published tokenizer.

    Args:
        source: its folder, or a `tokenizer.json`.
        kind: "minilm", "qwen3", "t5" or "clip".

    Returns:
        The tokenizer, which pads and cuts on the sides that the folder names, and for Qwen3 the
        text that its chat template puts around a prompt.

    Raises:
        ValueError: an unknown kind, or files that are missing, damaged, or of another model.
    """
    if kind not in _NEEDED:
        raise ValueError(f"tokenizer kind {kind!r}: accepted are {', '.join(_NEEDED)}")
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; name the {kind} tokenizer's folder")
    try:
        return _read(source, kind)
    except _Refusal:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"{source}: no readable {kind} tokenizer ({one_line(error)}); fetch it again"
        ) from error


def _read(source: Path, kind: str) -> BakedTokenizer:
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
    missing = [token for token in _NEEDED[kind] if tokenizer.token_to_id(token) is None]
    if missing:
        raise _Refusal(
            f"{source}: no {kind} tokenizer, it lacks {' and '.join(missing)}; point to the "
            f"tokenizer folder of the {kind} text encoder"
        )
    _add_tokens(tokenizer, settings)
    if from_pairs:
        # The marks around a text, once they have ids.
        end, start = (
            (named[n], tokenizer.token_to_id(named[n])) for n in ("eos_token", "bos_token")
        )
        tokenizer.post_processor = RobertaProcessing(
            end, start, trim_offsets=False, add_prefix_space=False
        )
    chat = _read_chat(folder, settings, named) if kind == "qwen3" else ("", "")
    _set_sides(tokenizer, source, settings, named["pad_token"])
    return BakedTokenizer(tokenizer, chat)


def _set_sides(
    tokenizer: Tokenizer, source: Path, settings: dict[str, Any], pad_token: str
) -> None:
    """Turns padding and truncation on; `TextTokenizer` sets the length."""
    side = {}
    for name, own in (("truncation", tokenizer.truncation), ("padding", tokenizer.padding)):
        found = settings.get(f"{name}_side") or (own or {}).get("direction", "right")
        if found not in ("left", "right"):
            raise _Refusal(f"{source}: {name}_side is {found!r}, expected left or right")
        side[name] = found
    tokenizer.enable_truncation(512, direction=side["truncation"])
    pad_id = tokenizer.token_to_id(pad_token)
    tokenizer.enable_padding(direction=side["padding"], pad_id=pad_id, pad_token=pad_token)


def _missing(folder: Path, kind: str) -> str:
    if (folder / "spiece.model").is_file():
        return (
            f"{folder}: has spiece.model but no tokenizer.json; write it with transformers: "
            "T5TokenizerFast.from_pretrained(folder).save_pretrained(folder)"
        )
    files = "tokenizer.json" + (", nor vocab.json and merges.txt" if kind == "clip" else "")
    return f"{folder}: no {files}; fetch all files of the {kind} model's tokenizer folder"


def _read_settings(folder: Path, kind: str) -> dict[str, Any]:
    settings = read_json(folder / "tokenizer_config.json")
    # As transformers: the older file counts only where the newer table is absent.
    if "added_tokens_decoder" not in settings:
        settings |= read_json(folder / "special_tokens_map.json")
    return _NAMED[kind] | {name: value for name, value in settings.items() if value is not None}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file; a `ValueError` for a damaged one."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Refusal(f"{file}: no readable JSON ({one_line(error)}); fetch it again") from error
    if not isinstance(found, dict):
        raise _Refusal(f"{file}: no JSON object; fetch it again")
    return found


def _content(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def _add_tokens(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Adds tokens that the folder names and the tokenizer lacks; ids of the vocabulary stay."""
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


def _read_chat(folder: Path, settings: dict[str, Any], named: dict[str, str]) -> tuple[str, str]:
    """The text that the folder's chat template puts before and after a prompt."""
    file = folder / "chat_template.jinja"
    source = settings.get("chat_template")
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    elif isinstance(source, list):  # several, by name
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    if not isinstance(source, str):
        raise _Refusal(
            f"{folder}: no chat template in chat_template.jinja or tokenizer_config.json; fetch "
            "all files of the qwen3 model's tokenizer folder"
        )
    try:
        before, found, after = _render(source, "\0", named).partition("\0")
        kept = all(_render(source, text, named) == before + text + after for text in _PROBES)
    except Exception as error:  # whatever the template raises
        raise _Refusal(
            f"{folder}: its chat template fails ({one_line(error)}); fetch it again"
        ) from error
    if not found or not kept:
        raise _Refusal(
            f"{folder}: its chat template changes the prompt, expected text before and after it; "
            "point to the tokenizer folder of the qwen3 text encoder"
        )
    return before, after


def _render(template: str, prompt: str, named: dict[str, str]) -> str:
    """A prompt in a chat template, rendered in a sandbox, as the template is code from elsewhere.

    It sees what transformers gives templates, except the date: a prompt must keep its ids.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals["raise_exception"] = _fail
    return environment.from_string(template).render(
        messages=[{"role": "user", "content": prompt}],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        enable_thinking=False,
        **named,
    )


def _fail(message: str) -> None:
    raise ValueError(message)
