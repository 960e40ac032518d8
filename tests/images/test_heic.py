"""HEIC, which is not read, is refused in words; oracle: a picture written by libheif with x265."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from cotir_jax.images.photo import photo_size, read_photo
from cotir_jax.restoring.folder import REPORT, restore_path
from cotir_jax.restoring.restorer import RestoreOptions, Restorer

FORMATS = "JPEG, PNG, WebP, TIFF, AVIF, GIF, BMP, PPM"
# 48 x 64 pixels of one grey.
WHOLE = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAABMAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEA"
    "GEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAA"
    "AwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAADAAAAAB"
    "AAAAQAAAAAH////wAAAAAgAAAAAAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAABtt"
    "ZGF0AAAADygBrwQY+AOjn/7KaCFwwA=="
)
FILES = {
    "whole": WHOLE,
    "header": WHOLE[:28],
    "sequence": WHOLE[:28].replace(b"heic", b"hevc"),
    "named by container": WHOLE.replace(b"ftypheic", b"ftypmif1"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("read", [read_photo, photo_size])
def test_heic_is_refused_and_the_accepted_formats_are_named(content, read, tmp_path):
    (tmp_path / "beach.heic").write_bytes(content)
    with pytest.raises(ValueError, match=f"it is HEIC; accepted are {FORMATS}") as error:
        read(tmp_path / "beach.heic")
    assert str(error.value).startswith(str(tmp_path / "beach.heic"))
    assert "\n" not in str(error.value)


def test_folder_names_the_heic_that_it_leaves_out(one_device, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(source / "a.png")
    (source / "b.HEIC").write_bytes(WHOLE)
    with pytest.raises(ValueError, match=r"1 of 2 pictures.*b\.HEIC"):
        options = RestoreOptions(num_steps=1)
        list(restore_path(Restorer.load("nano", one_device), source, out, options))
    report = json.loads((out / REPORT).read_text())
    assert "it is HEIC" in report["failed"][str(source / "b.HEIC")]
    assert list(report["restored"]) == [str(source / "a.png")]
