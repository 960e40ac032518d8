"""Read-out of written thoughts, calibration, accuracy: counted by hand, planted thoughts."""

import types

import numpy as np
import pytest
from scipy import special

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.composites import SINGLES
from cotir_jax.bench.words import thoughts
from cotir_jax.explaining import calibration, test_split
from cotir_jax.explaining.explainer import (
    FILE_NAME,
    Explainer,
    evenly_spread_crops,
    load_file,
    save_file,
)
from cotir_jax.explaining.read_out import (
    SCENE_WORDS,
    apply_map,
    degradation_sentence,
    plan_sentence,
    pool,
    read_words,
    write_thoughts,
)
from cotir_jax.models import presets
from cotir_jax.restoring.restorer import Restorer


@pytest.fixture(scope="module")
def explainer(one_device):
    return Explainer.load(Restorer.load("nano", one_device))


def test_accuracy_counted_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    truth = np.array([[True], [False], [True], [False]])
    table = calibration.measure_accuracy(["haze"], scores, scores >= 0.75, truth)
    row = table.rows[0]
    assert (row.precision, row.recall, row.prevalence, row.named) == (0.5, 0.5, 0.5, 0.5)
    assert row.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert table.all_named == 0.75  # all but the third
    # Of 16 pairs, a true picture's with one of the two explanations without haze fails: 4.
    assert table.all_named_by_chance == 0.75


def test_average_precision_of_ties_is_the_prevalence():
    truth = np.array([True, False, False, True, False])
    assert calibration.average_precision(np.zeros(5), truth) == pytest.approx(0.4)


def test_threshold_of_best_f1():
    scores = np.array([0.9, 0.8, 0.6, 0.3, 0.2])
    truth = np.array([True, True, False, True, False])
    # F1 from the top: 0.5, 0.8, 0.667, 0.857, 0.75.
    assert calibration.best_threshold(scores, truth) == pytest.approx(0.25)


def test_logistic_gives_the_frequencies():
    # Two raw scores with 3 of 4 and 1 of 4 true: the unpenalised fit passes through both.
    raw = np.repeat([[1.0], [-1.0]], 400, axis=0)
    truth = np.tile([[True], [True], [True], [False]], (200, 1))
    truth[400:] = ~truth[400:]
    fitted = calibration.fit_calibration(["haze"], raw, truth)
    got = special.expit(fitted.slopes * [1, -1] + fitted.constants)
    np.testing.assert_allclose(got, [0.75, 0.25], atol=1e-3)


def test_planted_thoughts_are_named(explainer):
    """The embedding of a new written thought names exactly its degradations, for most."""
    written = write_thoughts(1, seed=99)
    rows = np.random.default_rng(0).permutation(len(written.plans))[:60]
    encoder, pooling = explainer.model.encoders.tokens, explainer.read_out.pooling
    pooled = [
        pool(encoder(*encoder.tokenize([texts[row] for row in rows])), weights)
        for texts, weights in zip(written[:3], pooling, strict=True)
    ]
    plain = Explainer(explainer.model, explainer.read_out)
    exact = words = 0
    for row, planted in zip(rows, np.stack(pooled, axis=1), strict=True):
        read = plain.read(planted)
        truth = {SINGLES[i] for i in np.flatnonzero(written.labels[row, : len(SINGLES)])}
        exact += set(read.named) == truth
        scores = apply_map(explainer.read_out.scene, planted[0])
        words += all(w in written.scenes[row].lower().replace("-contrast", " contrast")
                     for w in read_words(scores).values())  # fmt: skip
    assert exact > 0.7 * len(rows) and words > 0.5 * len(rows), (exact, words)


def test_the_scene_writer_uses_the_words_of_the_bank():
    rng = np.random.default_rng(1)
    for _ in range(40):
        grid = rng.uniform(0, 255, (4, 4, 3)) * rng.uniform(0, 1, 3)
        sentence = thoughts.describe_scene(
            np.kron(grid, np.ones((16, 16, 1))).astype(np.uint8), rng
        )
        for kind, words in SCENE_WORDS.items():
            assert any(word in sentence.lower() for word in words), (kind, sentence)


def test_every_degradation_has_sentences_without_blanks():
    for name in SINGLES:
        for strength in ("", "severe"):
            for text in (
                degradation_sentence([(name, strength)]),
                plan_sentence([(name, strength)]),
            ):
                assert text[0].isupper() and text.endswith(".") and len(text) > 4
                assert not set("{}()") & set(text) and "  " not in text, text


def test_a_picture_is_explained_alike_in_both_depths(explainer):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, size, np.uint8) for size in ((40, 150, 3), (300, 129, 3))]
    first, second = map(explainer, pictures)
    assert second == explainer(pictures[1]) and first != second
    assert first == explainer(pictures[0].astype(np.uint16) * 257)
    assert all(0 <= reading.score <= 1 for reading in first.degradations)


@pytest.mark.parametrize("size, count", [((128, 128), 1), ((160, 160), 4), ((5000, 300), 6)])
def test_crops_lie_inside_and_spread(size, count):
    rows = np.broadcast_to(np.arange(size[0])[:, None, None], (*size, 3))
    crops = evenly_spread_crops(rows, 128)
    assert crops.shape == (count, 128, 128, 3)
    centre = crops.mean()
    assert abs(centre - (size[0] - 1) / 2) <= 1


def test_a_picture_of_another_dtype_is_refused(explainer):
    with pytest.raises(ValueError, match="float32"):
        explainer(np.zeros((64, 64, 3), np.float32))


def test_file_round_trip_and_damage(explainer, tmp_path):
    path = tmp_path / FILE_NAME
    fitted = calibration.Calibration(
        ("haze", "snow"), np.array([3.0, 4.0]), np.array([-1.0, 0.5]), np.array([0.4, 0.6]), 12
    )
    save_file(path, explainer.read_out, fitted)
    read_out, loaded = load_file(path)
    for one, other in zip(explainer.read_out, read_out, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    assert loaded.names == fitted.names and loaded.pictures == 12
    np.testing.assert_array_equal(loaded.thresholds, fitted.thresholds)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for damaged in (path.read_bytes()[:5000], b"no npz", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged") as error:
            load_file(path)
        assert "\n" not in str(error.value)


def test_unknown_degradations_are_refused():
    with pytest.raises(ValueError, match="unknown degradation 'fog'"):
        test_split.truth_table(["haze", "fog+noise"])


def test_a_split_calibrates_and_is_scored(explainer, tmp_path):
    """Dark against overexposed pictures of one photo, which nano tells apart."""
    build_bench(
        tmp_path / "bench", degradations="low-light,over-exposure", samples_per_degradation=1,
        test_per_degradation=12, size=96, workers=1,
    )  # fmt: skip
    listing = tmp_path / "bench" / "test" / "test.jsonl"
    calibrated = test_split.calibrate(explainer, listing)
    assert calibrated.names == ("low-light", "over-exposure") and calibrated.pictures == 24
    fitted = Explainer(explainer.model, explainer.read_out, calibrated)
    explanations, truth = test_split.explain_split(fitted, listing)
    table = test_split.accuracy(explanations, truth)
    assert {row.name for row in table.rows} == {"low-light", "over-exposure"}
    assert min(row.average_precision for row in table.rows) > 0.75
    assert table.top_named > table.top_named_by_chance
    hits = sum("low-light" in e.named for e, t in zip(explanations, truth, strict=True)
               if t == "low-light")  # fmt: skip
    assert table.rows[0].recall == pytest.approx(hits / 12)


def test_a_model_without_adapter_says_so(explainer):
    model = types.SimpleNamespace(config=presets.preset("nano", "adapter_depth=0"), folder=None)
    with pytest.raises(ValueError, match="no CoT adapter"):
        Explainer.load(model)
