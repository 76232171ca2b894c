"""A frame in several tiles, from the bundle to the event, against the tiny product's oracle."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.events.build import Origin, build_event
from edge.events.rle import decode_mask
from edge.frames import U8, FrameMeta, PixelFormat, Slot
from edge.inspection.inspector import Inspector
from edge.inspection.portable import PortableRuntime
from edge.inspection.result import Verdict
from edge.manifest import CanvasSpec
from tests.edge.forging import forge, refused
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

CANVASES = [
    CanvasSpec("stretch", 2, 2, 32),
    CanvasSpec("pad", 2, 2, 32),
    CanvasSpec("pad", 1, 1, 0),
    CanvasSpec("pad", 1, 3, 0),
    CanvasSpec("stretch", 3, 1, 32),
]


@pytest.fixture(scope="module", params=CANVASES, ids=str)
def tiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiled") / "redi.plan", canvas=request.param)


def fill(slot: Slot, image: U8) -> Slot:
    slot.shape_pixels(*image.shape[:2], PixelFormat.BGR8)[:] = image
    slot.meta = FrameMeta(source="test")
    return slot


def test_maps_scores_and_prompts_are_those_of_the_oracle(tiled: TinyBundle) -> None:
    with Bundle.open(tiled.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        # Sizes change from frame to frame.
        for image in (tiled.product.good(3), tiled.product.defective(1)[:60], tiled.product.defective(4)[:, :50]):
            found = runtime.run(fill(slot, image), 0.1)
            score, peak, prompt = tiled.score(image)
            expected = tiled.anomaly_map(image)
            assert slot.anomaly_map.shape == expected.shape
            np.testing.assert_allclose(slot.anomaly_map, expected, atol=1e-4)
            assert found.score == pytest.approx(score, rel=1e-4)
            assert found.peak == pytest.approx(peak, rel=1e-4)
            assert found.prompt == prompt
            np.testing.assert_array_equal(np.unpackbits(slot.mask, axis=1), slot.anomaly_map > 0.1)
            # The part that is the frame is all that there is.
            assert slot.frame_map.sum(dtype=float) == pytest.approx(slot.anomaly_map.sum(dtype=float))


def test_a_frame_allocates_no_array(tiled: TinyBundle) -> None:
    with Bundle.open(tiled.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        images = [tiled.product.good(0), tiled.product.defective(1)]
        for image in images:
            runtime.run(fill(slot, image), 0.1)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for image in images * 5:
                runtime.run(fill(slot, image), 0.1)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        # A map is 16 kB or more.
        assert peak < 14_000


def test_regions_lie_on_the_blemish_and_the_events_mask_covers_the_frame(tiled: TinyBundle) -> None:
    with Bundle.open(tiled.path) as bundle, Inspector(bundle, threads=1) as inspector:
        (slot,) = inspector.make_slots(1, 0)
        inspector.verify_golden()
        for index in range(20, 26):
            assert inspector.inspect(fill(slot, tiled.product.good(index))).verdict is Verdict.OK
            found = inspector.inspect(fill(slot, tiled.product.defective(index)))
            assert found.verdict is Verdict.NG
            x, y, width, height = tiled.product.blemish(index)
            centre = np.array([x + width / 2, y + height / 2])
            left, top, across, down = found.regions[0].bbox
            assert left <= centre[0] < left + across
            assert top <= centre[1] < top + down
            assert np.abs(np.array(found.regions[0].centroid) - centre).max() < 10
            mask = event_mask(slot)
            marked = np.argwhere(mask) + 0.5
            place = marked.mean(axis=0) * np.array([80, 96]) / mask.shape
            assert np.abs(place[::-1] - centre).max() < 12


def event_mask(slot: Slot) -> np.ndarray:
    origin = Origin("boot", "journal", 1, "cam", "bundle", "calibration", threshold=1.0, pixel_threshold=1.0, skipped=0)
    event, counts = build_event(slot, origin, decided_at_ns=1, total_ms=1.0)
    height, width = slot.frame_map.shape
    assert event.mask_size == (width, height)
    mask = decode_mask(counts, event.mask_size)
    np.testing.assert_array_equal(mask, slot.frame_mask)
    return mask


def test_a_fault_leaves_no_area_of_the_last_frame(tiled: TinyBundle) -> None:
    with Bundle.open(tiled.path) as bundle, Inspector(bundle, threads=1) as inspector:
        (slot,) = inspector.make_slots(1, 0)
        inspector.inspect(fill(slot, tiled.product.good(1)))
        assert slot.area is not None
        assert inspector.inspect(fill(slot, np.zeros((50, 40, 3), np.uint8))).verdict is Verdict.FAULT
        assert slot.area is None
        assert not slot.anomaly_map.any()


def test_a_bundle_that_names_no_canvas_is_one_tile(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan")
    forge(tiny.path, lambda manifest, _: manifest["model"].pop("canvas"))
    with Bundle.open(tiny.path) as bundle:
        assert bundle.manifest.model.canvas == CanvasSpec("stretch", 1, 1, 0)


@pytest.mark.parametrize(
    ("canvas", "names"),
    [
        ({"fit": "crop"}, "model.canvas.fit"),
        ({"rows": 0}, "model.canvas.rows"),
        ({"columns": -1}, "model.canvas.columns"),
        ({"rows": 2, "overlap": 64}, "model.canvas.overlap"),
        ({"rows": 2, "overlap": 33}, "model.canvas.overlap"),
        ({"rows": 2, "overlap": -32}, "model.canvas.overlap"),
        ({"rows": 2.5}, "$.model.canvas.rows"),
        ({"overlap": 32}, "model.canvas.overlap"),
        ({"rows": 200}, "model.canvas.rows"),
        ({"rows": 1 << 40}, "model.canvas.rows"),
        ({"rows": 100, "columns": 100}, "model.canvas.rows"),
        ({"tiles": 4}, "tiles"),
    ],
)
def test_a_canvas_that_cannot_be_is_refused(tmp_path: Path, canvas: dict[str, Any], names: str) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan")
    forge(tiny.path, lambda manifest, _: manifest["model"].update(canvas=canvas))
    assert names in refused(tiny.path)
