from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.calibrate import Request, calibrate, warnings_for
from calib.plot import draw, statement
from calib.scoring import GoodScores
from calib.threshold import pixel_tail
from edge.errors import CalibrationError
from edge.manifest import CompareSpec

COMPARE = CompareSpec(scales=((4, 8, 8), (8, 4, 4)))


def good(count: int, extra: tuple[float, ...] = ()) -> GoodScores:
    rng = np.random.default_rng(3)
    scores = [*rng.lognormal(-1.5, 0.2, count).tolist(), *extra]
    found = GoodScores(pixels=32 * 32)
    for index, score in enumerate(scores):
        found.paths.append(Path(f"good/{index:03}.png"))
        found.scores.append(score)
        found.tails.append(pixel_tail((rng.random((32, 32)) * score).astype(np.float32), 1e-3))
    return found


@pytest.mark.parametrize(("count", "extra"), [(60, ()), (60, (2.5,)), (400, ())])
def test_the_picture_is_one(count, extra):
    found = good(count, extra)
    calibration, decision = calibrate(found, Request(false_reject=0.01, pixel_rate=1e-3), COMPARE)
    data = draw(found.scores, [p.name for p in found.paths], calibration, decision, "title")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[0] > 400
    assert image.shape[1] > 600
    # Threshold red and good blue are both drawn.
    for bgr in ((43, 57, 192), (216, 125, 59)):
        assert np.any(np.all(np.abs(image.astype(int) - bgr) < 60, axis=2))


def test_the_words_give_rate_bound_and_confidence():
    calibration, decision = calibrate(good(60, (2.5,)), Request(false_reject=0.01), COMPARE)
    words = statement(calibration, decision)
    for part in ("0.01", "0.95", "if log-scores are normal", "1 of 61", f"{calibration.false_reject_bound:.3g}"):
        assert part in words


def test_calibrate_keeps_what_was_asked():
    request = Request(0.02, 0.9, "tolerance", 1e-3, 12, 0.5)
    calibration, decision = calibrate(good(60), request, COMPARE)
    assert calibration.threshold == decision.threshold
    assert calibration.pixel_threshold <= calibration.threshold
    assert (calibration.false_reject, calibration.confidence, calibration.method) == (0.02, 0.9, "tolerance")
    assert (calibration.min_region_px, calibration.pixel_size_mm, calibration.images) == (12, 0.5, 60)


def test_an_outliers_pixels_do_not_count():
    plain, _ = calibrate(good(60), Request(pixel_rate=1e-3), COMPARE)
    stray, decision = calibrate(good(60, (2.5,)), Request(pixel_rate=1e-3), COMPARE)
    assert decision.outliers == (60,)
    assert stray.pixel_threshold == plain.pixel_threshold


def test_a_threshold_that_no_part_could_exceed_is_refused():
    found = good(60)
    found.scores = [score * 12 for score in found.scores]
    with pytest.raises(CalibrationError, match="no score of this model exceeds 4"):
        calibrate(found, Request(), COMPARE)


@pytest.mark.parametrize("score", [0.0, -0.5, float("nan"), float("inf")])
def test_an_image_without_a_proper_score_is_named(score):
    found = good(60)
    found.scores[17] = score
    with pytest.raises(CalibrationError, match=r"good/017\.png"):
        calibrate(found, Request(), COMPARE)


def test_a_refusal_says_that_trained_images_were_left_out():
    found = good(5)
    found.trained.append(Path("good/old.png"))
    with pytest.raises(CalibrationError, match="left out because the model was trained"):
        calibrate(found, Request(), COMPARE)


def test_notes_name_what_to_look_at():
    found = good(60, (2.5,))
    found.skipped.append((Path("good/broken.png"), "truncated"))
    found.trained.append(Path("good/old.png"))
    found.duplicates.append((Path("good/copy.png"), Path("good/000.png")))
    _, decision = calibrate(found, Request(), COMPARE)
    notes = " ".join(warnings_for(found, decision))
    for part in ("broken.png", "old.png", "copy.png = 000.png", "060.png (2.5)"):
        assert part in notes
    clean = good(60)
    assert warnings_for(clean, calibrate(clean, Request(), COMPARE)[1]) == []


def test_names_are_neither_mathematics_nor_need_they_be_text():
    found = good(60, (2.5,))
    calibration, decision = calibrate(found, Request(false_reject=0.01, pixel_rate=1e-3), COMPARE)
    names = [r"$\frac$ caf\udce9.png"] * len(found.paths)
    data = draw(found.scores, names, calibration, decision, "good $_$, caf\udce9")
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
