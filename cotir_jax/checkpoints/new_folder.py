"""Folders that appear under their name only when they are complete."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from cotir_jax import files


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a folder to write to, which gets its final name only when it is complete.

    Args:
      folder: final name.
      replace: whether an existing folder is replaced; else it is an error.

    Raises:
      ValueError: when the folder exists already.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not replace:
        raise ValueError(f"{folder}: exists already; name another output folder or remove it")
    temporary = folder.with_name(f".{folder.name}.incomplete")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _together("made")
    try:
        yield temporary
        _together("written")
        if first:
            # A name must not outlive a power cut without its files.
            for path in filter(Path.is_file, temporary.rglob("*")):
                files.sync(path)
    except BaseException:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if first:
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    _together("renamed")


def _together(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"model folder {what}")
