from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.bundle import Bundle
from edge.errors import BundleMismatchError, GoldenError, RuntimeUnavailableError, UsageError
from edge.frames import U8, FrameMeta, PixelFormat, Slot
from edge.inspection.inspector import Inspector
from edge.inspection.result import Inspection, Verdict
from tests.tiny_bundle import TOLERANCE, TinyBundle, TinyProduct, write_tiny_bundle


@pytest.fixture
def bundle(tiny: TinyBundle) -> Iterator[Bundle]:
    with Bundle.open(tiny.path) as opened:
        yield opened


@pytest.fixture
def inspector(bundle: Bundle) -> Iterator[Inspector]:
    with Inspector(bundle, threads=1) as made:
        yield made


def show(inspector: Inspector, image: U8, slot: Slot | None = None, kind: PixelFormat = PixelFormat.BGR8) -> Inspection:
    slot = slot or inspector.make_slots(1, 0)[0]
    height, width = image.shape[:2]
    slot.shape_pixels(height, width, kind)[:] = image
    slot.meta = FrameMeta(source="test")
    found = inspector.inspect(slot)
    assert slot.inspection is found
    return found


def test_good_parts_are_ok_and_defective_parts_ng_where_the_blemish_is(inspector: Inspector, tiny: TinyBundle) -> None:
    for index in range(20, 32):
        good = show(inspector, tiny.product.good(index))
        assert (good.verdict, good.regions, good.reason) == (Verdict.OK, [], "")
        bad = show(inspector, tiny.product.defective(index))
        assert bad.verdict is Verdict.NG
        assert bad.score == pytest.approx(tiny.score(tiny.product.defective(index))[0], rel=1e-4)
        x, y, width, height = tiny.product.blemish(index)
        centre = (x + width / 2, y + height / 2)
        worst = bad.regions[0]
        left, top, across, down = worst.bbox
        assert left <= centre[0] < left + across
        assert top <= centre[1] < top + down
        assert worst.peak == np.float32(bad.peak)
        assert worst.area_mm2 == pytest.approx(worst.area_px * 0.25)
        assert bad.latency_ms.keys() == {"before", "core", "after"}


def test_ng_means_above_the_threshold(bundle: Bundle, tiny: TinyBundle) -> None:
    image = tiny.product.defective(5)
    assert bundle.calibration is not None
    with Inspector(bundle, threads=1) as inspector:
        score = show(inspector, image).score
    for threshold, verdict in ((score, Verdict.OK), (math.nextafter(score, 0), Verdict.NG)):
        rule = msgspec.structs.replace(bundle.calibration, threshold=threshold)
        with Inspector(bundle, threads=1, calibration=rule) as inspector:
            found = show(inspector, image)
            assert (found.verdict, found.score, found.threshold) == (verdict, score, threshold)


def test_another_rule_has_another_calibration_id(bundle: Bundle) -> None:
    assert bundle.calibration is not None
    changed = msgspec.structs.replace(bundle.calibration, threshold=1.0)
    with Inspector(bundle, threads=1) as own, Inspector(bundle, threads=1, calibration=changed) as other:
        assert own.calibration_id == bundle.calibration_id
        assert other.calibration_id not in ("", own.calibration_id)
        assert own.bundle_id == other.bundle_id == bundle.bundle_id


def test_an_ng_part_keeps_its_largest_region(bundle: Bundle, tiny: TinyBundle) -> None:
    assert bundle.calibration is not None
    rule = msgspec.structs.replace(bundle.calibration, min_region_px=10**6)
    with Inspector(bundle, threads=1, calibration=rule) as inspector:
        assert len(show(inspector, tiny.product.defective(1)).regions) == 1


def test_grey_frames_score_as_their_colour_twins(inspector: Inspector, tiny: TinyBundle) -> None:
    grey = tiny.product.defective(2)[..., 1]
    mono = show(inspector, grey, kind=PixelFormat.MONO8)
    colour = show(inspector, np.repeat(grey[..., None], 3, axis=2))
    assert mono.score == pytest.approx(colour.score, rel=1e-5)


NOISE = np.random.default_rng(0).integers(0, 4, (80, 96, 3)).astype(np.uint8)
PART = TinyProduct().good(0)


@pytest.mark.parametrize(
    ("pixels", "kind", "reason"),
    [
        pytest.param(np.zeros((80, 96, 3), np.uint8), PixelFormat.BGR8, "all black", id="black"),
        pytest.param(NOISE, PixelFormat.BGR8, "all black", id="black but for noise"),
        pytest.param(np.full((80, 96, 3), (9, 200, 90), np.uint8), PixelFormat.BGR8, "no contrast", id="one colour"),
        pytest.param(np.full((80, 96), 128, np.uint8), PixelFormat.MONO8, "no contrast", id="grey"),
        pytest.param(np.zeros((0, 96, 3), np.uint8), PixelFormat.BGR8, "empty", id="no rows"),
        pytest.param(np.zeros((80, 0), np.uint8), PixelFormat.MONO8, "empty", id="no columns"),
        pytest.param(np.dstack((PART, PART))[..., :4], PixelFormat.BGR8, "shape", id="four channels"),
        pytest.param(PART[..., :2], PixelFormat.BGR8, "shape", id="two channels"),
        pytest.param(PART, PixelFormat.MONO8, "shape", id="colour sent as mono"),
        pytest.param(PART[..., 0], PixelFormat.RGB8, "shape", id="mono sent as colour"),
        pytest.param(TinyProduct().dark(), PixelFormat.BGR8, "not finite", id="NaN from the network"),
    ],
)
def test_a_bad_frame_is_a_fault_and_spoils_nothing(
    inspector: Inspector, tiny: TinyBundle, pixels: U8, kind: PixelFormat, reason: str
) -> None:
    (slot,) = inspector.make_slots(1, 0)
    before = show(inspector, tiny.product.defective(3), slot)
    assert slot.mask.any()
    slot.pixels, slot.pixel_format = pixels, kind
    found = inspector.inspect(slot)
    assert found.verdict is Verdict.FAULT
    assert reason in found.reason
    assert math.isnan(found.score)
    assert math.isnan(found.peak)
    assert not found.regions
    assert not slot.mask.any()
    assert not slot.anomaly_map.any()
    slot.pixels = np.empty((0, 0), np.uint8)
    after = show(inspector, tiny.product.defective(3), slot)
    assert (after.verdict, after.score, after.regions) == (before.verdict, before.score, before.regions)


def test_a_single_bright_speck_is_contrast_enough(inspector: Inspector) -> None:
    image = np.zeros((801, 963, 3), np.uint8)
    image[400, 501] = 255
    assert "contrast" not in show(inspector, image).reason


def test_a_frame_in_error_is_a_fault_with_the_cameras_reason(inspector: Inspector, tiny: TinyBundle) -> None:
    (slot,) = inspector.make_slots(1, 0)
    show(inspector, tiny.product.defective(3), slot)
    slot.meta = FrameMeta(error="cannot read image x.png")
    assert inspector.inspect(slot) == slot.inspection
    assert slot.inspection is not None
    assert (slot.inspection.verdict, slot.inspection.reason) == (Verdict.FAULT, "cannot read image x.png")
    assert not slot.mask.any()


def test_without_a_calibration_there_is_no_verdict(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", calibrated=False)
    with Bundle.open(tiny.path) as bundle:
        with pytest.raises(BundleMismatchError, match="no calibration") as caught:
            Inspector(bundle, threads=1)
        assert "calib-threshold" in caught.value.hint
        with Inspector(bundle, threads=1, uncalibrated=True) as inspector:
            (slot,) = inspector.make_slots(1, 0)
            found = show(inspector, tiny.product.defective(0), slot)
            assert (found.verdict, found.threshold, inspector.calibration_id) == (Verdict.OK, math.inf, "")
            assert found.score > tiny.threshold
            assert not slot.mask.any()


def test_golden_frames_score_as_recorded(inspector: Inspector) -> None:
    results = inspector.verify_golden()
    assert [result.name for result in results] == ["frame0", "frame1", "frame2"]
    assert all(result.error < 1e-4 for result in results)


@pytest.mark.parametrize("factor", [1 + 2 * TOLERANCE, 1 - 2 * TOLERANCE])
def test_a_score_that_moved_is_refused(tmp_path: Path, factor: float) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", golden_factor=factor)
    pattern = r"frame\d scores .* 1\.00% accepted"
    with (
        Bundle.open(tiny.path) as bundle,
        Inspector(bundle, threads=1) as inspector,
        pytest.raises(GoldenError, match=pattern),
    ):
        inspector.verify_golden()


def test_a_score_within_the_tolerance_is_accepted(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", golden_factor=1 + TOLERANCE / 2)
    with Bundle.open(tiny.path) as bundle, Inspector(bundle, threads=1) as inspector:
        assert max(result.error for result in inspector.verify_golden()) == pytest.approx(TOLERANCE / 2, rel=0.02)


def test_the_runtime_explains_itself(inspector: Inspector) -> None:
    assert inspector.describe.startswith("portable: OpenVINO")
    assert "auto" in inspector.describe
    assert "\n" not in inspector.describe


def test_a_runtime_that_is_not_here(bundle: Bundle) -> None:
    with pytest.raises(RuntimeUnavailableError, match="CUDA") as caught:
        Inspector(bundle, runtime="cuda")
    assert "portable" in caught.value.hint
    with pytest.raises(UsageError, match="quantum"):
        Inspector(bundle, runtime="quantum")
