"""Reading and writing pictures, against Pillow and hand-made values."""

import io

import numpy as np
import pytest
from PIL import Image

from cotir_jax.images.pictures import (
    contact_sheet,
    encode_png,
    list_pictures,
    load_picture,
    save_picture,
    side_by_side,
)


def _random_picture(height=7, width=11, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_round_trip_is_exact_and_leaves_one_file(tmp_path):
    picture = _random_picture()
    save_picture(picture, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "new" / "a.png"), picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_exif_orientation_is_applied(tmp_path):
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left goes to the top
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = load_picture(tmp_path / "a.jpg")
    assert upright.shape == (32, 16, 3)
    assert upright[:15].min() > 240 and upright[17:].max() < 15


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (3, 2), 90), (90, 90, 90)),
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.fromarray(np.full((2, 3), 257 * 40, np.uint16)), (40, 40, 40)),
        (Image.new("RGBA", (3, 2), (100, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (100, 0, 200, 255)), (100, 0, 200)),
        (Image.new("LA", (3, 2), (0, 255)), (0, 0, 0)),
        (Image.new("RGB", (3, 2), (10, 20, 30)).quantize(2), (10, 20, 30)),
    ],
    ids=["grey", "one-bit", "16-bit", "transparent", "opaque", "grey-alpha", "palette"],
)
def test_other_modes(image, expected):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    picture = load_picture(stream.getvalue())
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[0, 0], expected)


def test_unreadable_pictures_name_the_file(tmp_path):
    whole = encode_png(_random_picture(64, 64))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png", "absent.png"):
        with pytest.raises(ValueError, match=name) as caught:
            load_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"sample 7"):
        load_picture(whole[:100], name="sample 7")


def test_save_refuses_what_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        save_picture(np.zeros((4, 4, 3), np.float32), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"\.xyz"):
        save_picture(_random_picture(), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_list_pictures(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "note.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent", "note.txt"):
        with pytest.raises(ValueError, match=folder):
            list_pictures(tmp_path / folder)


def test_side_by_side_keeps_the_pictures():
    left, right = _random_picture(width=5), _random_picture(width=9, seed=1)
    row = side_by_side([left, right])
    assert row.shape == (7, 18, 3)
    np.testing.assert_array_equal(row[:, :5], left)
    np.testing.assert_array_equal(row[:, 9:], right)
    assert (row[:, 5:9] == 255).all()
    with pytest.raises(ValueError, match="heights"):
        side_by_side([left, right[:3]])


def test_contact_sheet_shows_every_picture_and_label():
    pictures = [np.full((20, 30, 3), (10 * n, 200, 50), np.uint8) for n in range(4)]
    bare = contact_sheet([pictures[:3], pictures[3:]])
    sheet = contact_sheet([pictures[:3], pictures[3:]], ["one", "two"], ["x", "y", "z"])
    for picture in pictures:
        assert (sheet == picture[0, 0]).all(axis=2).sum() == 20 * 30
    assert sheet.shape[0] > bare.shape[0] and sheet.shape[1] > bare.shape[1]
    assert (sheet.max(axis=2) < 60).any() and not (bare.max(axis=2) < 60).any()  # dark letters
    with pytest.raises(ValueError, match="row labels"):
        contact_sheet([pictures], ["one", "two"])
