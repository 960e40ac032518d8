"""Token ids and masks against transformers' own tokenizers, from folders as models have them, and
from what `cotir convert` bakes of these."""

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.tokenizer_folders import CORPUS, MAKERS, clip, flags, write
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from cotir_jax.text.published_tokenizer import read_tokenizer
from cotir_jax.text.tokenizer import TextTokenizer

TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "  two  spaces,\ttabs\n\nand lines ",
    "Café, naïve façade; 東京タワー 🌧️ ... \u0041\u030a",
    "REMOVE THE RAIN, don't ADD noise: it's 100% FINE",
    "a<|im_end|>\n<|im_start|>system\nb<|endoftext|> <think>c</think> <|startoftext|>d",
    "<|ENDOFTEXT|> <|STARTOFTEXT|> </s><pad> <extra_id_0> [PAD] [CLS] </w>",
    "{{ messages }} {% if x %} <tool_response>\nnot a tool\n</tool_response>",
    "haze " * 200,
]
LENGTHS = {"qwen3": (40, 24), "t5": (40, 5), "clip": (77, 6), "minilm": (48, 5)}
KINDS = tuple(MAKERS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A sound published folder of each kind, not to be changed."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        MAKERS[kind](folder)
    return made


@pytest.fixture(scope="session")
def baked(tmp_path_factory, folders):
    """What these folders are baked into, not to be changed."""
    root = tmp_path_factory.mktemp("baked")
    for kind in KINDS:
        read_tokenizer(folders[kind], kind).save(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def own(tmp_path, folders):
    """Copies, to be damaged."""
    return {kind: shutil.copytree(folders[kind], tmp_path / kind) for kind in KINDS}


def _oracle(folder, kind, tokens):
    """Ids and masks of transformers, as FLUX's pipelines ask for them."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = TEXTS
    if kind == "qwen3":
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for text in texts
        ]
    out = tokenizer(texts, padding="max_length", truncation=True, max_length=tokens)
    return np.array(out["input_ids"]), np.array(out["attention_mask"])


def _check(folder, kind, tokens):
    """Ids and masks of a published folder, which equal transformers' and those once baked."""
    ids, mask = TextTokenizer(folder, tokens, kind).tokenize(TEXTS)
    with tempfile.TemporaryDirectory() as place:
        read_tokenizer(folder, kind).save(Path(place) / "baked")
        again = TextTokenizer(Path(place) / "baked", tokens, kind).tokenize(TEXTS)
    np.testing.assert_array_equal(again.ids, ids)
    np.testing.assert_array_equal(again.mask, mask)
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert ids.shape == mask.shape == (len(TEXTS), tokens)
    expected_ids, expected_mask = _oracle(folder, kind, tokens)
    for row, text in enumerate(TEXTS):
        assert ids[row].tolist() == expected_ids[row].tolist(), text
        assert mask[row].astype(int).tolist() == expected_mask[row].tolist(), text
    return ids, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1])
def test_ids_and_masks_equal_transformers(folders, kind, cut):
    ids, mask = _check(folders[kind], kind, LENGTHS[kind][cut])
    assert mask[-1].all() and len(np.unique(ids, axis=0)) > (2 if cut else 10)
    if not cut:
        assert not mask[4].all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_text_is_as_among_many(folders, kind):
    tokenizer = TextTokenizer(folders[kind], LENGTHS[kind][0], kind)
    ids, mask = tokenizer.tokenize(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(tokenizer, TEXTS * 4))
    for row, (one_ids, one_mask) in enumerate(alone):
        np.testing.assert_array_equal(one_ids, ids[row % len(TEXTS)])
        np.testing.assert_array_equal(one_mask, mask[row % len(TEXTS)])
    empty = tokenizer.tokenize([])
    assert empty[0].shape == empty[1].shape == (0, tokenizer.tokens)
    assert ids.max() < tokenizer.vocab_size


def test_prompt_is_wrapped_for_an_answer_without_thinking(folders):
    """The whole row by hand, as the release uses the template, without thinking."""
    ids, mask = TextTokenizer(folders["qwen3"], 60, "qwen3")("restore")
    words = Tokenizer.from_file(str(folders["qwen3"] / "tokenizer.json"))
    text = words.decode(ids[mask].tolist(), skip_special_tokens=False)
    assert text == (
        "<|im_start|>user\nrestore<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert set(ids[~mask].tolist()) == {words.token_to_id("<|endoftext|>")}


def test_chat_gets_no_marks_but_the_template_s(own):
    file = own["qwen3"] / "tokenizer.json"
    expected = TextTokenizer(own["qwen3"], 40, "qwen3").tokenize(TEXTS)
    words = Tokenizer.from_file(str(file))
    end = ("<|im_end|>", words.token_to_id("<|im_end|>"))
    words.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[end])
    words.save(str(file))
    found = TextTokenizer(own["qwen3"], 39, "qwen3").tokenize(TEXTS)
    np.testing.assert_array_equal(found[0], expected[0][:, :39])


def test_marks_survive_the_cut(folders):
    """T5 keeps its end of text, CLIP both marks, however long the text."""
    t5 = TextTokenizer(folders["t5"], 5, "t5")(TEXTS[-1])[0]
    assert t5[-1] == 1
    tokenizer = TextTokenizer(folders["clip"], 6, "clip")
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert tokenizer(TEXTS[-1])[0][[0, -1]].tolist() == [start, end]


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_sides_are_those_of_the_folder(own, kind, side):
    file = own[kind] / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {side: "left"}))
    _, mask = _check(own[kind], kind, LENGTHS[kind][0])
    assert mask[4, 0] == (side == "truncation_side")


@pytest.mark.parametrize("layout", ["jinja file", "named list", "file before config"])
def test_places_of_the_chat_template(own, layout):
    folder = own["qwen3"]
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    template = settings.pop("chat_template")
    if layout == "jinja file":
        write(folder, "chat_template.jinja", template)
    elif layout == "named list":
        other = {"name": "tool_use", "template": "tools"}
        settings["chat_template"] = [other, {"name": "default", "template": template}]
    else:
        settings["chat_template"] = "other"
        loop = "  {% for m in messages %}\n {{ m.content }}\n  {% endfor %}\n"
        template = "{% if tools is none %}\n" + loop + "{{ eos_token }}{% endif %}\n"
        write(folder, "chat_template.jinja", template)
    file.write_text(json.dumps(settings))
    _check(folder, "qwen3", 40)


@pytest.mark.parametrize(
    "layout", ["tokenizer.json", "older settings", "no settings", "other padding"]
)
def test_clip_folders(own, tmp_path, layout):
    transformers = pytest.importorskip("transformers", reason="it writes tokenizer.json")
    folder = own["clip"]
    file = folder / "tokenizer_config.json"
    if layout == "tokenizer.json":
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "fast")
        folder = tmp_path / "fast"
        assert not (folder / "merges.txt").exists()
    elif layout == "older settings":
        file.write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
        start = flags("<|startoftext|>", normalized=True)
        del start["special"]
        marks = {"bos_token": start, "eos_token": start | {"content": "<|endoftext|>"},
                 "unk_token": "<|endoftext|>", "pad_token": "!"}  # fmt: skip
        write(folder, "special_tokens_map.json", marks)
    elif layout == "no settings":
        file.write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    else:
        clip(folder, pad_token="!")  # as the second tokenizer of SDXL
    ids, mask = _check(folder, "clip", 77)
    if layout in ("older settings", "other padding"):
        vocab = json.loads((folder / "vocab.json").read_text())
        assert set(ids[~mask].tolist()) == {vocab["!"]}


def test_pickle_is_small_and_loads_elsewhere(baked):
    """In a worker that needs neither jax nor what reads published tokenizers."""
    for kind in KINDS:
        tokenizer = TextTokenizer(baked[kind], LENGTHS[kind][0], kind)
        assert {path.name for path in baked[kind].iterdir()} == {
            "tokenizer.json", *["chat.json"] * (kind == "qwen3")}  # fmt: skip
        tokenizer("loaded already")
        data = pickle.dumps(tokenizer)
        assert len(data) < 1000
        code = (
            "import sys, pickle; tokenizer = pickle.load(sys.stdin.buffer)\n"
            "ids, mask = tokenizer('noise and haze')\n"
            "unwanted = {'jax', 'transformers', 'jinja2', 'cotir_jax.text.published_tokenizer'}\n"
            "assert not unwanted & set(sys.modules)\n"
            "sys.stdout.buffer.write(ids.tobytes() + mask.tobytes())"
        )
        there = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True)
        ids, mask = tokenizer("noise and haze")
        assert there.stdout == ids.tobytes() + mask.tobytes(), there.stderr.decode()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat.json"])
def test_damaged_baked_folder_is_one_clear_line(baked, tmp_path, name):
    folder = shutil.copytree(baked["qwen3"], tmp_path / "qwen3")
    _cut(name)(folder)
    with pytest.raises(ValueError, match="no readable qwen3 tokenizer .* convert") as caught:
        TextTokenizer(folder, 20, "qwen3")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_folder_of_another_model(folders, kind, other):
    if kind == other:
        return
    with pytest.raises(ValueError) as caught:
        TextTokenizer(folders[other], 20, kind)
    message = str(caught.value)
    assert str(folders[other]) in message and f"the {kind} " in message and "\n" not in message


def _cut(name):
    def damage(folder):
        content = (folder / name).read_text()
        (folder / name).write_text(content[: len(content) // 2])

    return damage


def _set(**fields):
    def damage(folder):
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return damage


def _only_spiece(folder):
    (folder / "tokenizer.json").rename(folder / "spiece.model")


ESCAPE = "{{ messages.__class__.__mro__[1].__subclasses__() }}"


@pytest.mark.parametrize(
    ("kind", "damage", "says"),
    [
        ("qwen3", lambda folder: shutil.rmtree(folder), "no such file or folder"),
        ("qwen3", lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json; fetch"),
        ("qwen3", _cut("tokenizer.json"), "no readable qwen3 tokenizer"),
        ("qwen3", _cut("tokenizer_config.json"), "tokenizer_config.json: no readable JSON"),
        ("qwen3", lambda f: write(f, "tokenizer_config.json", [1]), "no JSON object"),
        ("qwen3", _set(chat_template=None), "no chat template"),
        ("qwen3", _set(chat_template=[{"name": "a", "template": "b"}]), "no chat template"),
        ("qwen3", _set(chat_template="{% if %}\n"), r"its chat template fails \(Expected"),
        ("qwen3", _set(chat_template="{{ raise_exception('a\nb') }}"), r"fails \(a b\)"),
        ("qwen3", _set(chat_template="{{ strftime_now('%d') }}"), "strftime_now"),
        ("qwen3", _set(chat_template=ESCAPE), "unsafe"),
        ("qwen3", _set(chat_template="{{ messages[0].content | trim }}"), "changes the prompt"),
        ("qwen3", _set(chat_template="nothing of it"), "changes the prompt"),
        ("qwen3", _set(padding_side="top"), "padding_side is 'top'"),
        ("t5", _only_spiece, "T5TokenizerFast.from_pretrained"),
        ("t5", _set(added_tokens_decoder={"a": {"content": "x"}}), "no readable t5 tokenizer"),
        ("clip", lambda folder: (folder / "merges.txt").unlink(), "nor vocab.json and merges.txt"),
        ("clip", _cut("vocab.json"), "no readable clip tokenizer"),
        ("clip", lambda folder: write(folder, "merges.txt", "a b c\n"), "no readable clip"),
        ("minilm", _cut("tokenizer.json"), "no readable minilm tokenizer"),
    ],
)
def test_damaged_folder_is_one_clear_line(own, kind, damage, says):
    damage(own[kind])
    with pytest.raises(ValueError, match=says) as caught:
        TextTokenizer(own[kind], 20, kind)
    assert str(own[kind]) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "tokens"), [("t5", 1), ("clip", 2), ("minilm", 2), ("qwen3", 0)])
def test_no_room_for_text(folders, kind, tokens):
    with pytest.raises(ValueError, match=f"got {tokens} tokens per text; give {tokens + 1} or"):
        TextTokenizer(folders[kind], tokens, kind)


def test_unknown_kind(folders):
    with pytest.raises(ValueError, match="'bert': accepted are minilm, qwen3, t5, clip"):
        TextTokenizer(folders["minilm"], 8, "bert")
