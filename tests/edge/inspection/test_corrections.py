"""Region of interest, flat field and pixel formats, through the whole inspection."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge.bundle import FLAT_FIELD, Bundle, set_calibration, update_bundle
from edge.errors import BundleError, BundleMismatchError
from edge.events.build import Origin, build_event
from edge.events.codec import EventMessage
from edge.frames import U8, PixelFormat, Slot
from edge.images import straightened, to_bgr
from edge.inspection.inspector import Inspector
from edge.inspection.result import Inspection, Verdict
from edge.manifest import GAIN_ONE, Calibration, Lens
from edge.overlay import over_frame
from tests.tiny_bundle import TinyBundle

ROI = (57, 31, 96, 80)
FRAME = (150, 200)


@pytest.fixture
def path(tiny: TinyBundle, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny.path, tmp_path / "redi.plan"))


def rule(path: Path) -> Calibration:
    with Bundle.open(path) as bundle:
        assert bundle.calibration is not None
        return bundle.calibration


def around(part: U8) -> U8:
    """A frame that shows the part where the region of interest is, and around it what must not count."""
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3)).astype(np.uint8)
    x, y, width, height = ROI
    frame[y : y + height, x : x + width] = part
    return frame


def show(inspector: Inspector, pixels: U8, kind: PixelFormat = PixelFormat.BGR8) -> tuple[Inspection, Slot]:
    (slot,) = inspector.make_slots(1, 0)
    slot.shape_pixels(*kind.size(pixels.shape), kind)[:] = pixels
    return inspector.inspect(slot), slot


def as_nv12(image: U8) -> U8:
    """OpenCV makes planes of it, this interleaves those of the chroma."""
    planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
    height, width = image.shape[:2]
    chroma = planes[height:].reshape(2, -1)
    return np.concatenate((planes[:height], chroma.T.reshape(height // 2, width)))


def as_mosaic(image: U8, kind: PixelFormat) -> U8:
    mosaic = np.empty(image.shape[:2], np.uint8)
    for site, name in enumerate(kind.bayer):
        at = np.s_[site // 2 :: 2, site % 2 :: 2]
        mosaic[at] = image[..., "bgr".index(name)][at]
    return mosaic


def test_regions_mask_and_event_of_a_region_of_interest_lie_where_the_blemish_is(tiny: TinyBundle, path: Path) -> None:
    set_calibration(path, msgspec.structs.replace(rule(path), roi=ROI))
    image, (left, top, wide, high) = tiny.product.defective(4), tiny.product.blemish(4)
    with Bundle.open(path) as bundle, Inspector(bundle, threads=1) as inspector:
        assert max(result.error for result in inspector.verify_golden()) < 1e-3
        found, slot = show(inspector, around(image))
    assert found.verdict is Verdict.NG
    assert found.score == pytest.approx(tiny.score(image)[0], rel=1e-4)
    x, y, width, height = found.regions[0].bbox
    assert x <= ROI[0] + left + wide / 2 < x + width
    assert y <= ROI[1] + top + high / 2 < y + height
    origin = Origin("boot", "journal", 1, "cam0", "", "", 1.0, 1.0, 0)
    event, counts = build_event(slot, origin, decided_at_ns=1, total_ms=1.0)
    assert (event.frame_size, event.roi) == (FRAME[::-1], ROI)
    marked = over_frame(EventMessage(event, counts).mask_array(), event.frame_size, event.roi)
    rows, columns = np.nonzero(marked)
    boxes = [region.bbox for region in found.regions]
    assert columns.min() >= min(box[0] for box in boxes)
    assert columns.max() < max(box[0] + box[2] for box in boxes)
    assert rows.min() >= min(box[1] for box in boxes)
    assert rows.max() < max(box[1] + box[3] for box in boxes)


def test_a_flat_field_evens_the_light(tiny: TinyBundle, path: Path) -> None:
    image = tiny.product.defective(6)
    # The right half of the light is four times darker.
    gain = np.full(image.shape[:2], GAIN_ONE, np.uint16)
    gain[:, 48:] *= 4
    dim = image.copy()
    dim[:, 48:] //= 4
    evened = image.copy()
    evened[:, 48:] = dim[:, 48:] * 4
    set_calibration(path, rule(path), flat_field=gain)
    with Bundle.open(path) as bundle, Inspector(bundle, threads=1) as inspector:
        assert inspector.calibration_id == bundle.calibration_id
        found, slot = show(inspector, dim)
        wrong, _ = show(inspector, np.ascontiguousarray(dim[:, :-2]))
        assert max(result.error for result in inspector.verify_golden()) < 1e-3
    assert found.score == pytest.approx(tiny.score(evened)[0], rel=1e-4)
    assert np.array_equal(slot.pixels, dim)
    assert wrong.verdict is Verdict.FAULT
    assert "94 x 80 pixels, but the flat field is 96 x 80" in wrong.reason


@pytest.mark.parametrize("kind", [kind for kind in PixelFormat if kind is PixelFormat.NV12 or kind.bayer])
def test_a_frame_scores_as_the_picture_that_is_kept_of_it(tiny: TinyBundle, path: Path, kind: PixelFormat) -> None:
    image = tiny.product.defective(7)
    pixels = as_nv12(image) if kind is PixelFormat.NV12 else as_mosaic(image, kind)
    with Bundle.open(path) as bundle, Inspector(bundle, threads=1) as inspector:
        live, slot = show(inspector, pixels, kind)
        kept, _ = show(inspector, to_bgr(pixels, kind))
        assert slot.size == image.shape[:2]
        black = np.zeros_like(pixels)
        if kind is PixelFormat.NV12:
            black[:80], black[80:] = 16, 128
        dark, _ = show(inspector, black, kind)
        plain, _ = show(inspector, np.where(black == 128, 90, 3 + black), kind)
        odd, _ = show(inspector, np.where(np.indices(pixels.shape).sum(0) % 7 == 0, black, 200), kind)
    assert live.verdict is kept.verdict is Verdict.NG
    # Rounding, and OpenCV's borders.
    assert live.score == pytest.approx(kept.score, rel=0.02)
    assert "all black" in dark.reason
    assert "no contrast" in plain.reason
    assert odd.verdict is not Verdict.FAULT


def test_only_the_region_of_interest_must_show_something(tiny: TinyBundle, path: Path) -> None:
    changed = msgspec.structs.replace(rule(path), roi=ROI)
    with Bundle.open(path) as bundle, Inspector(bundle, threads=1, calibration=changed) as inspector:
        covered, slot = show(inspector, around(np.zeros_like(tiny.product.good(0))))
        small, _ = show(inspector, tiny.product.good(0))
        event, _ = build_event(
            slot, Origin("boot", "journal", 1, "cam0", "", "", 1.0, 1.0, 0), decided_at_ns=1, total_ms=1.0
        )
    assert "all black" in covered.reason
    assert "does not hold the region of interest, 96 x 80 at 57, 31" in small.reason
    assert event.roi is None


def test_a_flat_field_stays_with_the_calibration_that_names_it(path: Path) -> None:
    gain = np.random.default_rng(1).integers(0, 1 << 16, (80, 96)).astype(np.uint16)
    plain = rule(path)
    with Bundle.open(path) as bundle:
        bundle_id, calibration_id = bundle.bundle_id, bundle.calibration_id
    set_calibration(path, plain, flat_field=gain)
    with Bundle.open(path) as bundle:
        np.testing.assert_array_equal(bundle.array(FLAT_FIELD), gain)
        assert bundle.bundle_id == bundle_id
        assert bundle.calibration_id != calibration_id
        assert bundle.calibration is not None
        named = bundle.calibration
    # Another threshold keeps it, a calibration without one takes it away.
    set_calibration(path, msgspec.structs.replace(named, min_region_px=5))
    with Bundle.open(path) as bundle:
        assert FLAT_FIELD in bundle.members
        other = msgspec.structs.replace(named, flat_field="0" * 64)
        with pytest.raises(BundleMismatchError, match="flat field"):
            Inspector(bundle, calibration=other)
    set_calibration(path, plain)
    with Bundle.open(path) as bundle:
        assert FLAT_FIELD not in bundle.members
        assert bundle.calibration_id == calibration_id


@pytest.mark.parametrize(
    "gain", [np.ones((80, 96), np.float32), np.ones((80, 96, 1), np.uint16), np.ones((0, 96), np.uint16)]
)
def test_what_is_no_flat_field_is_refused(path: Path, gain: np.ndarray) -> None:
    with pytest.raises(BundleError, match="flat field"):
        set_calibration(path, rule(path), flat_field=gain)


def test_a_flat_field_and_its_name_belong_together(path: Path) -> None:
    with pytest.raises(BundleError, match="flat_field"):
        set_calibration(path, msgspec.structs.replace(rule(path), flat_field="ab" * 32))
    with pytest.raises(BundleError, match="flat_field"):
        update_bundle(path, {FLAT_FIELD: b"any bytes"})


@pytest.mark.parametrize("roi", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (16380, 0, 5, 5)])
def test_a_region_of_interest_that_is_none_is_refused(path: Path, roi: tuple[int, int, int, int]) -> None:
    with pytest.raises(BundleError, match=r"calibration\.roi"):
        set_calibration(path, msgspec.structs.replace(rule(path), roi=roi))


LENS = Lens(100.0, 100.0, 50.0, 40.0, -0.25, 0.05)


def test_a_lens_is_straightened_and_told_to_who_draws(tiny: TinyBundle, path: Path) -> None:
    set_calibration(path, msgspec.structs.replace(rule(path), lens=LENS))
    image = tiny.product.good(8)
    with Bundle.open(path) as bundle, Inspector(bundle, threads=1) as inspector:
        assert bundle.calibration is not None
        assert bundle.calibration.lens == LENS
        assert max(result.error for result in inspector.verify_golden()) < 1e-3
        found, slot = show(inspector, image)
    # OpenCV rounds each pixel, and positions to 1 / 32.
    assert found.score == pytest.approx(tiny.score(straightened(image, LENS))[0], rel=0.03)
    assert found.score > 2 * tiny.score(image)[0]
    assert slot.lens == LENS
    assert np.array_equal(slot.pixels, image)


@pytest.mark.parametrize("change", [{"fx": 0.0}, {"fy": -1.0}, {"k1": 1e7}, {"cx": float("inf")}])
def test_a_lens_that_is_none_is_refused(path: Path, change: dict[str, float]) -> None:
    lens = msgspec.structs.replace(LENS, **change)
    with pytest.raises(BundleError, match=r"calibration"):
        set_calibration(path, msgspec.structs.replace(rule(path), lens=lens))
