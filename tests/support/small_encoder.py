"""Trains with two of MiniLM's six layers: a start then takes 9 s of CPU time in place of 24.

    COTIR_SMALL_ENCODER=FOLDER python -m support.small_encoder --config=nano --workdir=W

`write` makes the folder. Everything else is `python -m cotir_jax.main`.
"""

import json
import os
import re
import runpy
from pathlib import Path

from safetensors.numpy import load_file, save_file

from cotir_jax.models.text_encoders import minilm

LAYERS = 2


def write(folder: Path) -> Path:
    """Writes the packaged encoder's embeddings and first layers into `folder`."""
    packaged = minilm.PACKAGED_FOLDER
    config = json.loads((packaged / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(packaged / "model.safetensors")
    number = re.compile(r"\.layer\.(\d+)\.")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not (found := number.search(name)) or int(found[1]) < LAYERS
    }
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    minilm.PACKAGED_FOLDER = Path(os.environ["COTIR_SMALL_ENCODER"])  # its tokenizer stays
    runpy.run_module("cotir_jax.main", run_name="__main__", alter_sys=True)
