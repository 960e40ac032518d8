"""Small shards of known pixels, and what a loader gives of them.

A picture's pixels say where they come from: (column, row, sample id), with 100 added to the id in
the clean one.
"""

import hashlib
import io
import json
import tarfile

import jax
import numpy as np
from PIL import Image

from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.text.tokenizer import TextTokenizer

WIDTH, HEIGHT, PATCH = 24, 20, 16
COUNTS = {"haze": (4, 1), "low-light_noise": (7,), "snow": (3, 1)}  # samples in each shard
TOKENS = 6


def png(sample_id, size=(WIDTH, HEIGHT)):
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    picture = np.stack([columns, rows, np.full_like(rows, sample_id)], axis=2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def meta_json(sample_id):
    words = [f"{thought} {sample_id}" for thought in ("scene", "fault", "plan")]
    answers = (
        f"scene description: {words[0]} degradation description: {words[1]} "
        f"enhancement plan: {words[2]} answer: done"
    )
    questions = [f"vague {sample_id}", f"precise {sample_id}"]
    return json.dumps({"cot": {"questions": questions, "answers": answers}, "deg": "x"}).encode()


def sample_files(sample_id):
    return {
        "hq.png": png(100 + sample_id), "lq.png": png(sample_id), "meta.json": meta_json(sample_id)
    }  # fmt: skip


def write_shard(path, samples):
    """Samples by key, each a dict of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for field, data in files.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_prompts(folder, names=("gen_prompt", *COUNTS)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(f"{name} line 0\n\n{name} line 1\n")


def write_bench(root):
    sample_id = 0
    for name, shards in COUNTS.items():
        for number, count in enumerate(shards):
            ids = range(sample_id, sample_id + count)
            samples = {f"key-{i}": sample_files(i) for i in ids}
            write_shard(root / "image" / name / f"{number:06d}.tar", samples)
            sample_id += count
    write_prompts(root / "prompts")
    return root


def read_batches(index, tokenizer_file, stage=Stage(0, 12, PATCH, 6), **options):  # noqa: B008
    settings = {"seed": 3, "vague_schedule": ((0, 0.5),), "num_threads": 2}
    tokenizer = TextTokenizer(tokenizer_file, TOKENS, "minilm")
    return stage_batches(index, stage, tokenizer=tokenizer, **settings | options)


def sample_ids(batch):
    return batch["lq"][:, 0, 0, 2].tolist()


def digest(batch):
    digest = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(batch):
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def assert_equal(ours, theirs):
    """Two batches, pytrees of arrays, are the same."""
    ours, structure = jax.tree.flatten_with_path(ours)
    theirs, other = jax.tree.flatten_with_path(theirs)
    assert structure == other
    for (path, one), (_, two) in zip(ours, theirs, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two, err_msg=jax.tree_util.keystr(path))
