"""A sound benchmark of small shards, and a tokenizer of its words."""

import shutil

import pytest
from support.shards import write_bench
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture(scope="session", name="bench")
def bench_fixture(tmp_path_factory):
    """A sound benchmark, not to be changed."""
    return write_bench(tmp_path_factory.mktemp("sound") / "bench")


@pytest.fixture(name="own_bench")
def own_bench_fixture(tmp_path, bench):
    """A copy without index, to be damaged."""
    shutil.copytree(bench, tmp_path / "bench", ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path / "bench"


@pytest.fixture(scope="session", name="tokenizer_file")
def tokenizer_file_fixture(tmp_path_factory):
    numbers = [str(number) for number in range(100)]
    words = ["[PAD]", "[UNK]", "scene", "fault", "plan", "vague", "precise", "line", *numbers]
    words += ["[CLS]"]  # by which the kind is known
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file
