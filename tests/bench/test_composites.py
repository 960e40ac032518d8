"""Named chains, their order, maps from files, and the words and sheets made from them."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cotir_jax.bench import composites, gallery
from cotir_jax.bench.composites import (
    COMPOSITES,
    QUICK_COMPOSITES,
    QUICK_SINGLES,
    SEEN,
    SINGLES,
    UNSEEN,
    Maps,
    apply_chain,
    folder_name,
    parts_of,
    sample_chain,
)
from cotir_jax.bench.degradations.filters import place_mask
from cotir_jax.bench.gallery import write_gallery
from cotir_jax.bench.maps import depth_of_photo, load_map, load_maps
from cotir_jax.bench.words.phrases import JPEG_TYPES, prompt_files
from cotir_jax.bench.words.thoughts import parse_thoughts, write_meta
from cotir_jax.images.pictures import save_picture

# docs/design.md, section 7, with its blur as defocus or motion blur.
_PUBLISHED_SEEN = (
    "low-light+defocus-blur", "low-light+motion-blur", "haze+snow", "raindrop+defocus-blur",
    "rain-streak+raindrop", "low-light+noise", "low-light+haze+rain-streak+jpeg-compression",
)  # fmt: skip
_PUBLISHED_UNSEEN = (
    "rain-streak+watermark", "low-light+flare", "flare+rain-streak+jpeg-compression",
    "flare+snow", "low-resolution+haze+defocus-blur+jpeg-compression",
    "low-resolution+lost_color+noise",
)  # fmt: skip
_STAGES = (
    {"low-light", "shadow"},
    {"underwater", "haze", "non-homogeneous-haze", "rain-streak", "snow"},
    {"specular-reflection", "raindrop"},
    {"flare", "defocus-blur", "motion-blur"},
    {"over-exposure", "low-resolution", "noise"},
    {"lost_color", "smartphone-to-dslr"},
    {"watermark"},
    {"jpeg-compression"},
)
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_names_of_the_spec_are_there():
    for split, names in ((SEEN, _PUBLISHED_SEEN), (UNSEEN, _PUBLISHED_UNSEEN)):
        assert {frozenset(name.split("+")) for name in names} <= {
            frozenset(name.split("+")) for name in split
        }
    assert SEEN + UNSEEN == COMPOSITES and len(set(COMPOSITES)) == len(COMPOSITES)
    # In no order of the parts.
    seen = {frozenset(name.split("+")) for name in SEEN}
    assert not seen & {frozenset(name.split("+")) for name in UNSEEN}
    assert len({folder_name(name) for name in (*SINGLES, *COMPOSITES)}) == len(SINGLES) + len(
        COMPOSITES
    )


def test_order_is_the_lights():
    stage = {name: number for number, names in enumerate(_STAGES) for name in names}
    assert [stage[name] for name in SINGLES] == sorted(stage.values())
    for name in COMPOSITES:
        assert parts_of(name) == name.split("+")
        assert [step.name for step in sample_chain(name, 64, np.random.default_rng(0))]
    assert parts_of("jpeg-compression+flare+shadow") == ["shadow", "flare", "jpeg-compression"]
    for name in ("low-light+shadow+flare", "low-light+underwater+watermark"):
        chain = sample_chain(name, 64, np.random.default_rng(0))
        assert [step.name for step in chain if step.implied] == ["noise"]
        assert [stage[step.name] for step in chain] == sorted(stage[s.name] for s in chain)


def test_the_quick_job_draws_what_it_always_drew():
    # Recorded before the other degradations came; README's figures for nano hang on it.
    digest = 0
    for name in (*QUICK_SINGLES, *QUICK_COMPOSITES):
        for number in range(8):
            rng = np.random.default_rng([number, zlib.crc32(name.encode())])
            text = f"{name} {sample_chain(name, 176, rng)}"
            text = re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.9g}", text)
            digest = zlib.crc32(text.encode(), digest)
    assert digest == 613402375
    assert set(QUICK_COMPOSITES) <= set(SEEN) and set(QUICK_SINGLES) <= set(SINGLES)


def test_prompt_files_of_some_names():
    files = prompt_files(("haze", "haze+snow"))
    assert set(files) == {"gen_prompt", "haze", "haze_snow", *JPEG_TYPES}
    assert files["haze"] == prompt_files()["haze"]


@pytest.mark.parametrize("name", ["shadow+noise", "snow+flare", "low-light+flare", *SINGLES])
def test_tiny_and_odd_pictures(name):
    for shape in ((32, 32), (33, 47), (61, 32)):
        picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        for severity in (0.0, 1.0):
            chain = sample_chain(name, 32, np.random.default_rng(2), severity)
            degraded = apply_chain(picture, chain, np.random.default_rng(3))
            assert degraded.shape == picture.shape and degraded.dtype == np.uint8
            again = apply_chain(picture, chain, np.random.default_rng(3))
            np.testing.assert_array_equal(degraded, again)
            assert severity == 0 or (degraded != picture).any()


@pytest.fixture
def map_files(tmp_path):
    for kind in ("depth", "rain", "snow"):
        (tmp_path / kind).mkdir()
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8)[:, None, None], (1, 120, 3))
    save_picture(ramp, tmp_path / "depth" / "street.png")
    streaks = np.zeros((100, 140, 3), np.uint8)
    streaks[:, ::7] = 90
    save_picture(streaks, tmp_path / "rain" / "a.png")
    flakes = np.zeros((100, 140, 3), np.uint8)
    flakes[::9, ::9] = 255
    save_picture(flakes, tmp_path / "snow" / "b.png")
    return tmp_path


def test_load_maps(map_files):
    maps = load_maps(map_files / "depth", map_files / "rain" / "a.png", str(map_files / "snow"))
    assert list(maps.depth) == ["street"]
    assert maps.rain_masks == (map_files / "rain" / "a.png",)
    assert load_maps() == Maps() == Maps({}, (), ())
    depth = depth_of_photo(maps, Path("photos/street.jpg"), 45, 60)
    assert depth.shape == (45, 60) and depth.dtype == np.float32
    np.testing.assert_allclose(depth[:, 0], np.linspace(0, 1, 45), atol=0.02)
    assert depth_of_photo(maps, Path("other.jpg"), 45, 60) is None
    with pytest.raises(ValueError, match="other proportions"):
        depth_of_photo(maps, Path("street.jpg"), 60, 45)


def test_what_load_maps_refuses(map_files, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    (tmp_path / "a.txt").write_text("no picture")
    save_picture(np.zeros((4, 4, 3), np.uint8), map_files / "depth" / "street.jpg")
    for arguments, message in (
        ({"depth": tmp_path / "missing"}, "no such folder"),
        ({"rain_masks": tmp_path / "empty"}, "holds no pictures"),
        ({"snow_masks": tmp_path / "text"}, "cannot be read"),
        ({"rain_masks": tmp_path / "a.txt"}, "not a picture"),
        ({"depth": map_files / "depth"}, "second depth map"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_maps(**arguments)
        assert "\n" not in str(caught.value)


def test_masks_are_what_falls(map_files):
    maps = load_maps(None, map_files / "rain", map_files / "snow")
    grey = np.full((60, 80, 3), 60, np.uint8)
    for name in ("rain-streak", "snow"):
        rng = np.random.default_rng(4)
        chain = sample_chain(name, 60, rng, 0.3, maps=maps)
        assert chain[0].params.mask is load_map(
            map_files / name[:4] / f"{'ab'[name == 'snow']}.png"
        )
        fallen = apply_chain(grey, chain, rng).astype(int) - grey
        assert fallen.min() >= 0 and fallen.max() > 20
        # The mask's grid: streaks in columns, flakes at crossings, both mostly background.
        assert np.median(fallen) < 10 and (fallen > 20).mean() > 0.005
        if name == "rain-streak":
            assert fallen[..., 0].std(axis=0).max() < 3 < fallen[..., 0].mean(axis=0).std()
        meta = write_meta(PICTURE, chain, name, rng)
        degradation = parse_thoughts(meta)[1]
        assert f"{chain[0].params.opacity:.2f}" in degradation and "{" not in degradation
        assert str(chain[0].params.count) not in degradation  # nobody counted a file's streaks
    mild, severe = (
        apply_chain(grey, sample_chain("snow", 60, np.random.default_rng(1), s, maps=maps),
                    np.random.default_rng(1)) for s in (0.1, 0.9)
    )  # fmt: skip
    assert severe.mean() > mild.mean()


def test_every_mask_has_its_turn(map_files):
    save_picture(np.full((9, 9, 3), 50, np.uint8), map_files / "rain" / "c.png")
    maps = load_maps(rain_masks=map_files / "rain")
    shapes = {
        sample_chain("rain-streak", 60, np.random.default_rng(seed), maps=maps)[0].params.mask.shape
        for seed in range(12)
    }
    assert shapes == {(100, 140), (9, 9)}


@pytest.mark.parametrize("shape", [(1, 1), (500, 3), (7, 700)])
def test_masks_of_any_shape_cover_the_picture(shape):
    placed = place_mask(np.full(shape, 0.5, np.float32), 33, 47, np.random.default_rng(0))
    assert placed.shape == (33, 47)
    np.testing.assert_allclose(placed, 0.5, atol=1e-6)


def test_depth_and_second_photo_reach_their_steps():
    depth = np.linspace(0, 1, 60 * 80, dtype=np.float32).reshape(60, 80)
    second = PICTURE[::-1]
    for name in ("haze", "non-homogeneous-haze", "underwater"):
        chain = sample_chain(name, 60, np.random.default_rng(0), depth=depth, second=second)
        assert chain[0].params.depth is depth
        apply_chain(PICTURE, chain, np.random.default_rng(0))
    kinds = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        params = sample_chain("specular-reflection", 60, rng, second=second)[0].params
        assert params.second is second
        kinds.add(params.kind)
    assert kinds == {"highlights", "window"}


def test_maps_for_nothing_change_no_draw():
    for name in ("shadow", "noise+lost_color", "low-light+haze"):
        plain = sample_chain(name, 64, np.random.default_rng(1))
        given = sample_chain(
            name, 64, np.random.default_rng(1), maps=Maps(), depth=np.ones((64, 64), np.float32)
        )
        assert plain == given


def test_shared_masks_and_depth():
    folder = Path(__file__).parents[3] / "shared" / "data" / "masks_and_depth"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/masks_and_depth")
    maps = load_maps(folder / "depth_map__1.jpg")
    photo = np.asarray(Image.open(folder / "clear__1.jpg"))
    depth = depth_of_photo(maps, Path("depth_map__1.jpg"), *photo.shape[:2])
    chain = sample_chain("haze", 720, np.random.default_rng(0), 0.7, depth=depth)
    hazy = apply_chain(photo, chain, np.random.default_rng(0)).astype(float)
    moved = np.abs(hazy - photo).mean(axis=2)
    assert (
        moved[depth < np.quantile(depth, 0.2)].mean()
        > 1.5 * moved[depth > np.quantile(depth, 0.8)].mean()
    )


def test_gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "SEEN", SEEN[-9:])  # the sheet is laid out alike
    save_picture(
        np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8), tmp_path / "p.png"
    )
    files = write_gallery(tmp_path / "g.jpg", tmp_path / "p.png", side=40)
    assert [path.name for path in files] == ["g.jpg", "g-composites.jpg"]
    singles, named = (np.asarray(Image.open(path)) for path in files)
    assert singles.shape[0] > 10 * 40 and singles.shape[1] > 6 * 40
    assert named.shape[0] > 3 * 40 and named.shape[1] > 7 * 40
    with pytest.raises(ValueError, match="suffix"):
        write_gallery(tmp_path / "g.gif", tmp_path / "p.png")
    with pytest.raises(ValueError, match="no such file"):
        write_gallery(tmp_path / "g.png", tmp_path / "missing.png")
    assert composites.SEEN == SEEN
