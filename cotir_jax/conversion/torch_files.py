"""Published files: safetensors, and PyTorch state dicts without running their code.

Tensors are read one at a time into memory of their own: mapped pages of a 24 GB file would stay
resident. The two formats are also written here.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

# safetensors' names of dtypes -> numpy's; bfloat16 is not numpy's own.
DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (64, 32, 16)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (64, 32, 16, 8)},
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where one tensor is stored.

    Attributes:
      file: that holds it.
      shape: of the tensor.
      dtype: key of `DTYPES`, or the file's own word for one that is not known here.
      span: first and last byte in a safetensors file; None in a `.pt` file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    span: tuple[int, int] | None


class Tensors:
    """The tensors of one published checkpoint, in one or several files.

    Args:
      path: what messages call it: the file, or the index of several.
      entries: by name.
      metadata: words that the file carries with its tensors.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
    ):
        self.path, self.entries, self.metadata = path, entries, metadata or {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def nbytes(self, name: str) -> int:
        """Size of a tensor on disk; 0 for a `.pt` file, which is read into memory of its own."""
        span = self.entries[name].span
        return span[1] - span[0] if span else 0

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({entry.file for entry in self.entries.values()})

    def read(self, name: str, buffer: np.ndarray | None = None) -> np.ndarray:
        """One tensor in memory of its own, in its dtype on disk.

        Args:
          name: of the tensor.
          buffer: uint8, to use as that memory where it is large enough.

        Raises:
          ValueError: when the file has become unreadable.
        """
        entry = self.entries[name]
        if entry.span is None:
            return _to_numpy(_load_pt(entry.file)[name])
        start, end = entry.span
        if buffer is None or buffer.nbytes < end - start:
            buffer = np.empty(end - start, np.uint8)
        view = memoryview(buffer)[: end - start]
        with open(entry.file, "rb", buffering=0) as file:
            file.seek(start)
            while view:
                count = file.readinto(view)  # at most 2 GB at a time
                if not count:
                    raise ValueError(f"{entry.file}: ends within {name}; fetch it again")
                view = view[count:]
        return buffer[: end - start].view(DTYPES[entry.dtype]).reshape(entry.shape)


def open_tensors(path: Path) -> Tensors:
    """Reads names, shapes and dtypes of a `.safetensors`, `.pt` or `*.safetensors.index.json`.

    Raises:
      ValueError: for a missing, damaged or unsafe file; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        names = {f"torch.{dtype.name}": name for name, dtype in DTYPES.items()}
        entries = {}
        for name, tensor in _load_pt(path).items():
            dtype = str(tensor.dtype)
            entries[name] = Entry(path, tuple(tensor.shape), names.get(dtype, dtype), None)
        return Tensors(path, entries)
    raise ValueError(f"{path}: expected a .safetensors or .pt file")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a small file (bfloat16 by ml_dtypes); raises as `open_tensors` does."""
    tensors = open_tensors(path)
    return {name: tensors.read(name) for name in tensors.entries}


def _open_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file's length
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged or incomplete safetensors file ({_short(error)}); fetch it again"
        ) from None
    metadata, entries = header.pop("__metadata__", None), {}
    for name, fields in header.items():
        start, end = (8 + size + offset for offset in fields["data_offsets"])
        entries[name] = Entry(path, tuple(fields["shape"]), fields["dtype"], (start, end))
    return Tensors(path, entries, metadata)


def _open_index(path: Path) -> Tensors:
    try:
        listed = json.loads(path.read_text())["weight_map"]
        shards = sorted(set(listed.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged index ({error!r}); fetch it again") from None
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        if not (path.parent / shard).is_file():
            raise ValueError(
                f"{path.parent / shard}: named by {path.name} and not there; fetch this shard too"
            )
        part = _open_safetensors(path.parent / shard)
        entries |= part.entries
        metadata |= part.metadata
    for name, shard in listed.items():
        if name not in entries or entries[name].file != path.parent / shard:
            raise ValueError(f"{path}: says that {name} is in {shard}, which lacks it; fetch both")
    return Tensors(path, entries, metadata)


def _torch(path: Path, doing: str, instead: str) -> Any:
    """PyTorch; a `ValueError` that says what else to do where it is not installed."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: {doing} .pt files needs PyTorch; pip install 'cotir_jax[torch]', or {instead}"
        ) from None
    return torch


def _load_pt(path: Path) -> dict[str, Any]:
    torch = _torch(path, "reading", "pass the same tensors as .safetensors")
    try:
        # Files older than PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for damaged or unsafe pickles
        raise ValueError(
            f"{path}: damaged, or not a plain PyTorch state dict ({_short(error)}); fetch it again"
        ) from None
    if not isinstance(state, dict) or not all(torch.is_tensor(x) for x in state.values()):
        raise ValueError(f"{path}: holds more than named tensors; save only the state dict")
    return state


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def _short(error: Exception) -> str:
    return str(error).split("\n")[0][:200]


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[Sequence[int], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file tensor by tensor; the library's own writer takes all at once.

    Args:
      path: file to write.
      layout: shape and dtype by name.
      tensors: the same names in the same order.
      metadata: words to store with them.

    Raises:
      ValueError: when the tensors are not those of the layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, (shape, dtype) in layout.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = dict(dtype=_NAMES[dtype], shape=list(shape), data_offsets=[start, end])
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for (expected, (shape, dtype)), (name, tensor) in zip(layout.items(), tensors, strict=True):
            if (name, tensor.shape, tensor.dtype) != (expected, tuple(shape), dtype):
                raise ValueError(
                    f"{path}: got {name} {tensor.shape} {tensor.dtype}, expected {expected} "
                    f"{tuple(shape)} {dtype}"
                )
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def write_pt(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a PyTorch state dict.

    Raises:
      ValueError: without PyTorch.
      OSError: when the file cannot be written.
    """
    torch = _torch(path, "writing", "export with --format=safetensors")
    state = {}
    for name, tensor in tensors.items():
        if tensor.dtype == ml_dtypes.bfloat16:
            state[name] = torch.from_numpy(tensor.view(np.int16)).view(torch.bfloat16)
        else:
            state[name] = torch.from_numpy(tensor)
    try:
        torch.save(state, path)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise OSError(
            f"{path}: cannot be written ({_short(error)}); free some space and run it again"
        ) from None
