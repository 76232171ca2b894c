from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from edge.cameras.base import EndOfStream
from edge.cameras.open import open_camera
from edge.cameras.sim import SimLine
from edge.errors import CameraError
from edge.frames import PixelFormat, Slot

NewSlot = Callable[..., Slot]

#: Long enough to be a hang where it is reached.
LONG = 30.0


def test_parts_are_drawn_into_the_slot_and_their_truth_can_be_found_again(new_slot: NewSlot) -> None:
    slot = new_slot()
    line = SimLine(seed=3, width=96, height=80, defect_rate=0.5, product="tile")
    with open_camera("sim:seed=3,count=5, width=96,height=80,defects=0.5,product=tile", name="cam1") as camera:
        assert (camera.name, camera.live, camera.total) == ("cam1", False, 5)
        for index in range(5):
            assert camera.capture(slot, 0.0)
            assert slot.meta.source == f"sim/3/{index:06d}"
            assert slot.meta.frame_id == index
            assert slot.meta.capture_ms > 0
            assert slot.pixel_format is PixelFormat.BGR8
            assert slot.pixels.ctypes.data == slot.memory.ctypes.data
            np.testing.assert_array_equal(slot.pixels, line.part(index).image)
        with pytest.raises(EndOfStream):
            camera.capture(slot, 0.0)


@pytest.mark.parametrize("spec", ["sim", "sim:", "sim:width=64,height=64"])
def test_everything_has_a_default(spec: str) -> None:
    with open_camera(spec) as camera:
        assert (camera.live, camera.total) == (False, None)


def test_a_rate_makes_it_live_and_a_part_that_is_not_due_a_time_out(new_slot: NewSlot) -> None:
    slot = new_slot()
    with open_camera("sim:rate=0.01,width=64,height=64") as camera:
        assert camera.live
        assert camera.capture(slot, 0.0)
        assert not camera.capture(slot, 0.01)
        assert not camera.capture(slot, 0.0)
    with open_camera("sim:rate=200,count=3,width=64,height=64") as camera:
        assert [camera.capture(slot, LONG) for _ in range(3)] == [True] * 3
        assert slot.meta.source == "sim/0/000002"


def test_closing_ends_a_wait(new_slot: NewSlot) -> None:
    slot = new_slot()
    camera = open_camera("sim:rate=0.001,width=64,height=64")
    assert camera.capture(slot, 0.0)
    outcome: list[bool] = []
    thread = threading.Thread(target=lambda: outcome.append(camera.capture(slot, LONG)))
    thread.start()
    camera.close()
    thread.join(LONG / 2)
    assert outcome == [False]


@pytest.mark.parametrize(
    ("options", "problem", "hint"),
    [
        ("speed=3", "no option 'speed'", "seed, count, rate, defects, width, height, product, rotation"),
        ("product=cube", "no product 'cube'", "disc, tile"),
        ("seed", "'seed' needs one value", "sim:seed="),
        ("seed=1,seed=2", "'seed' needs one value", "sim:seed="),
        ("seed=-1", "seed=-1", "from 0"),
        ("seed=x", "seed=x", "whole number"),
        ("count=0", "count=0", "from 1"),
        ("count=2.5", "count=2.5", "whole number"),
        ("width=10", "width=10", "from 64"),
        ("height=99999", "height=99999", "to 16384"),
        ("defects=1.1", "defects=1.1", "from 0 to 1"),
        ("defects=nan", "defects=nan", "from 0 to 1"),
        ("rate=0", "rate=0", "from 0.001"),
        ("rotation=-1", "rotation=-1", "from 0 to 180"),
        ("rate=inf", "rate=inf", "100000"),
    ],
)
def test_wrong_options_are_named_with_what_is_known(options: str, problem: str, hint: str) -> None:
    with pytest.raises(CameraError) as caught:
        open_camera(f"sim:{options}")
    assert problem in caught.value.problem
    assert hint in caught.value.hint
