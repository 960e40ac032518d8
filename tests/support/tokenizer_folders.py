"""Tiny tokenizer folders of each kind, laid out like those of the published models.

Byte pairs or pieces are learned from a few sentences; special tokens, settings and the features of
the chat template are as published.
"""

import json
import shutil

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from cotir_jax.models.text_encoders.minilm import PACKAGED_FOLDER

CORPUS = [
    "Please restore this degraded photo.",
    "scene description: a wooden boat lies on a calm lake below snow-covered mountains.",
    "degradation description: strong Gaussian noise (sigma 25/255) and JPEG blocks, quality 12.",
    "enhancement plan: first brighten the shadows, then take out the noise, then sharpen.",
] * 3
# The features of Qwen3's template: white-space control, a namespace, a backward walk over the
# messages, slices, tests, string methods, JSON, and the switch that turns thinking off.
TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and
           not(message.content.startswith('<tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {{- raise_exception('no tools here') }}
    {%- else %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def write(folder, name, content):
    """Writes text, or JSON."""
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def flags(content, special=True, normalized=False):
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False,
            "single_word": False, "special": special}  # fmt: skip


def qwen3(folder):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = norm.NFC()
    words = pre.Split(Regex(QWEN_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre.Sequence(
        [words, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    thinking = ["<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in thinking])
    tokenizer.save(str(folder / "tokenizer.json"))
    table = {
        tokenizer.token_to_id(token): flags(token, special=token in special)
        for token in special + thinking
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": table,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "chat_template": TEMPLATE,
    }
    write(folder, "tokenizer_config.json", settings)


def t5(folder):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre.Sequence(
        [pre.WhitespaceSplit(), pre.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "added_tokens_decoder": {i: flags(token) for i, token in enumerate(special)},
        "additional_special_tokens": ["<extra_id_0>"],
        "extra_ids": 1,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    write(folder, "tokenizer_config.json", settings)


def clip(folder, pad_token="<|endoftext|>"):
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = norm.Sequence([norm.NFC(), norm.Lowercase()])
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre.ByteLevel(add_prefix_space=False),
        ]
    )
    # Room for all bytes in both forms, as in the published vocabulary.
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet,
        special_tokens=[letter + "</w>" for letter in sorted(alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocab = learned["vocab"]
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    write(folder, "vocab.json", vocab)
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        # Unlike each other, as in FLUX.1.
        "added_tokens_decoder": {
            start: flags("<|startoftext|>", normalized=True),
            end: flags("<|endoftext|>"),
        },
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
    }
    write(folder, "tokenizer_config.json", settings)


def minilm(folder):
    shutil.copy(PACKAGED_FOLDER / "tokenizer.json", folder)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})


# Each writes into an empty folder.
MAKERS = {"qwen3": qwen3, "t5": t5, "clip": clip, "minilm": minilm}
