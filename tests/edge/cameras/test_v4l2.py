"""User-pointer streaming, against a driver played in Python: buffers, states and refusals as V4L2 documents them."""

from __future__ import annotations

import ctypes
import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.cameras import v4l2_abi as abi
from edge.cameras.open import is_live, open_camera
from edge.cameras.v4l2 import V4l2Camera, open_v4l2
from edge.errors import CameraError
from edge.frames import PixelFormat, Slot
from tests.edge.cameras.v4l2_driver import REQUESTS, Driver

NewSlot = Callable[..., Slot]


@pytest.fixture
def play() -> Iterator[Callable[..., tuple[Driver, V4l2Camera]]]:
    drivers, cameras = [], []

    def make(options: dict[str, str] | None = None, **given: Any) -> tuple[Driver, V4l2Camera]:
        drivers.append(Driver(**given))
        cameras.append(V4l2Camera("cam0", drivers[-1].fd, "/dev/videoX", options or {}, drivers[-1].ioctl))
        return drivers[-1], cameras[-1]

    yield make
    for camera in cameras:
        camera.close()
    for driver in drivers:
        driver.close()


def begin(camera: V4l2Camera, slot: Slot) -> None:
    """Lend the slot; there is no frame yet."""
    assert not camera.capture(slot, 0.0)
    assert camera.holds_slot


@pytest.mark.parametrize("name", list(abi.FORMATS))
def test_every_format_lands_in_the_slots_own_memory(play: Any, new_slot: NewSlot, name: str) -> None:
    driver, camera = play(name=name)
    slot = new_slot(frame_bytes=0)
    begin(camera, slot)
    memory = slot.memory.ctypes.data
    before = time.monotonic_ns()
    assert driver.expose(77)
    assert camera.capture(slot, 5.0)
    assert driver.lent == [memory]
    assert slot.pixels.ctypes.data == slot.memory.ctypes.data == memory
    assert slot.pixel_format is abi.FORMATS[name]
    assert slot.size == (48, 64)
    assert (slot.pixels == 77).all()
    assert slot.meta.error is None
    assert (slot.meta.source, slot.meta.frame_id) == ("/dev/videoX#000000", 0)
    # The driver's own time, of the microsecond.
    assert before - 1000 <= slot.meta.captured_ns <= time.monotonic_ns()
    assert slot.meta.captured_ns % 1000 == 0
    assert not camera.holds_slot
    assert camera.live


def test_slots_in_turn_each_get_their_own_frame(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play()
    slots = [new_slot(frame_bytes=0) for _ in range(10)]
    for value in range(30):
        slot = slots[value % 10]
        begin(camera, slot)
        driver.expose(value)
        assert camera.capture(slot, 5.0)
        assert slot.meta.frame_id == value
    for index, slot in enumerate(slots):
        assert (slot.pixels == 20 + index).all()
    assert len(set(driver.lent)) == 10
    # Streaming began once and has never stopped.
    assert driver.calls.count(abi.STREAMON) == 1
    assert abi.STREAMOFF not in driver.calls


def test_a_slot_that_waits_is_lent_once(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play()
    slot = new_slot(frame_bytes=0)
    for _ in range(5):
        begin(camera, slot)
    assert driver.calls.count(abi.QBUF) == 1
    driver.expose(9)
    assert camera.capture(slot, 5.0)


def test_nothing_is_written_into_a_slot_that_was_taken_back(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play()
    first, second = new_slot(frame_bytes=0), new_slot(frame_bytes=0)
    begin(camera, first)
    # A frame that is there already and was not fetched is not the second slot's.
    driver.expose(1)
    begin(camera, second)
    first.memory.fill(255)
    driver.expose(2)
    assert camera.capture(second, 5.0)
    assert (second.pixels == 2).all()
    assert (first.memory == 255).all()
    begin(camera, first)
    camera.recall()
    assert not camera.holds_slot
    assert not driver.queued
    assert not driver.expose(3)
    begin(camera, first)
    driver.expose(4)
    assert camera.capture(first, 5.0)
    assert (first.pixels == 4).all()


def test_a_driver_that_wants_several_buffers_gets_them(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play(fewest=3)
    slots = [new_slot(frame_bytes=0) for _ in range(3)]
    for value in range(9):
        slot = slots[value % 3]
        for _ in range(4):
            # Frames that fell into memory of its own are left out.
            if camera.capture(slot, 0.0):
                break
            assert driver.expose(value)
        else:
            raise AssertionError(value)
        assert (slot.pixels == value).all()
        assert slot.pixels.ctypes.data in driver.lent


def test_rows_that_lie_apart(play: Any, new_slot: NewSlot) -> None:
    for name in ("NV12", "BGR3", "RGGB"):
        driver, camera = play(name=name, padding=40)
        slot = new_slot(frame_bytes=0)
        begin(camera, slot)
        driver.expose(5)
        assert camera.capture(slot, 5.0)
        assert slot.pixels.strides[0] == driver.stride
        assert slot.pixels.shape == slot.pixel_format.shape(48, 64)
        assert (slot.pixels == 5).all()
        slot.pixels[...] = 6
        assert np.count_nonzero(slot.memory == 6) == slot.pixels.size


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({"bytesused": 100}, "100 of 4608 bytes"),
        ({"bytesused": 0}, "0 of 4608"),
        ({"flags": abi.FLAG_ERROR}, "damaged"),
    ],
)
def test_a_damaged_frame_is_a_frame_in_error(play: Any, new_slot: NewSlot, frame: Any, words: str) -> None:
    driver, camera = play()
    slot = new_slot(frame_bytes=0)
    begin(camera, slot)
    driver.expose(1, **frame)
    assert camera.capture(slot, 5.0)
    assert words in (slot.meta.error or "")
    assert slot.pixels.size == 0
    begin(camera, slot)
    driver.expose(2)
    assert camera.capture(slot, 5.0)
    assert (slot.meta.error, slot.meta.frame_id) == (None, 1)
    assert (slot.pixels == 2).all()


def test_a_clock_that_is_not_ours_says_nothing(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play()
    slot = new_slot(frame_bytes=0)
    begin(camera, slot)
    driver.expose(1, flags=0)
    before = time.monotonic_ns()
    assert camera.capture(slot, 5.0)
    assert slot.meta.captured_ns >= before


def test_an_unplugged_camera_is_lost_at_once(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play()
    slot = new_slot(frame_bytes=0)
    begin(camera, slot)
    driver.unplug()
    with pytest.raises(CameraError, match="/dev/videoX is lost: No such device") as caught:
        camera.capture(slot, 30.0)
    assert "cable" in caught.value.hint
    assert not camera.holds_slot
    with pytest.raises(CameraError, match="closed"):
        camera.capture(slot, 30.0)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EPIPE])
def test_a_driver_that_fails_is_a_lost_camera(play: Any, new_slot: NewSlot, number: int) -> None:
    driver, camera = play()
    slot = new_slot(frame_bytes=0)
    begin(camera, slot)
    driver.expose(1)
    driver.refuse[abi.DQBUF] = number
    with pytest.raises(CameraError, match="is lost"):
        camera.capture(slot, 30.0)
    assert driver.calls[-1] == abi.STREAMOFF


@pytest.mark.parametrize("request_number", [abi.QBUF, abi.STREAMON])
def test_a_stream_that_does_not_begin(play: Any, new_slot: NewSlot, request_number: int) -> None:
    _, camera = play(refuse={request_number: errno.EINVAL})
    with pytest.raises(CameraError, match="/dev/videoX"):
        camera.capture(new_slot(frame_bytes=0), 30.0)
    assert not camera.holds_slot


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({}, {"abilities": abi.CAP_VIDEO_CAPTURE}, "does not stream"),
        ({}, {"abilities": abi.CAP_STREAMING}, "does not stream"),
        ({}, {"refuse": {abi.QUERYCAP: errno.ENOTTY}}, "no V4L2 device"),
        ({}, {"refuse": {abi.REQBUFS: errno.EINVAL}}, "memory of ours"),
        ({}, {"refuse": {abi.S_FMT: errno.EBUSY}}, "another program"),
        ({}, {"name": "YUYV", "formats": ["YUYV", "MJPG"]}, "gives YUYV, MJPG"),
        ({"format": "GREY"}, {}, "does not give GREY at 64 x 48, but NV12"),
        ({"width": "1920"}, {"largest": 640}, "does not give NV12 at 1920 x 48, but NV12 at 640 x 48"),
        ({"width": "63"}, {}, "both must be even"),
    ],
)
def test_what_a_device_cannot_do_is_said_when_it_is_opened(play: Any, options: Any, given: Any, words: str) -> None:
    with pytest.raises(CameraError) as caught:
        play(options, **given)
    assert words in str(caught.value)


def test_options_set_the_device(play: Any, new_slot: NewSlot) -> None:
    driver, camera = play({"format": "RGGB", "width": "32", "height": "20"}, formats=["NV12", "RGGB"])
    assert (driver.name, driver.width, driver.height) == ("RGGB", 32, 20)
    slot = new_slot(frame_bytes=0)
    begin(camera, slot)
    driver.expose(3)
    assert camera.capture(slot, 5.0)
    assert (slot.pixel_format, slot.pixels.shape) == (PixelFormat.BAYER_RGGB, (20, 32))


def test_a_device_set_to_what_cannot_be_inspected_is_set_to_what_can(play: Any) -> None:
    driver, camera = play(name="YUYV", formats=["YUYV", "GREY", "RGGB"])
    assert driver.name == "RGGB"
    assert camera.layout.pixel_format is PixelFormat.BAYER_RGGB


@pytest.mark.parametrize(
    "spec",
    [
        "/dev/null?format=YUYV",
        "/dev/null?width=0",
        "/dev/null?width=16385",
        "/dev/null?height=many",
        "/dev/null?depth=8",
        "/dev/null?width=8&width=9",
        "/dev/null",
        "/dev/absent",
        "/dev/nul\0l",
        "",
    ],
)
def test_a_wrong_spec_is_one_clear_error(spec: str) -> None:
    with pytest.raises(CameraError):
        open_camera(f"v4l2:{spec}")
    assert is_live(f"v4l2:{spec}")


def test_a_number_is_a_device() -> None:
    with pytest.raises(CameraError, match="/dev/video997"):
        open_v4l2("cam0", "997")


def test_structures_and_requests_are_those_of_the_system(tmp_path: Path) -> None:
    """Where the system's header is at hand; the sizes are part of the requests' numbers in any case."""
    if not Path("/usr/include/linux/videodev2.h").exists():
        pytest.skip("no linux/videodev2.h here")
    fields = {
        "v4l2_buffer": (
            abi.Buffer,
            {"timestamp": "seconds", "sequence": "sequence", "m": "userptr", "length": "length"},
        ),
        "v4l2_format": (abi.Format, {"fmt.pix.width": "width", "fmt.pix.sizeimage": "sizeimage"}),
        "v4l2_capability": (abi.Capability, {"capabilities": "capabilities", "device_caps": "device_caps"}),
        "v4l2_fmtdesc": (abi.FormatDescription, {"pixelformat": "pixelformat"}),
        "v4l2_requestbuffers": (abi.RequestBuffers, {"memory": "memory"}),
        "v4l2_control": (abi.Control, {"value": "value"}),
    }
    constants = {
        "V4L2_CAP_VIDEO_CAPTURE": abi.CAP_VIDEO_CAPTURE,
        "V4L2_CAP_STREAMING": abi.CAP_STREAMING,
        "V4L2_CAP_DEVICE_CAPS": abi.CAP_DEVICE_CAPS,
        "V4L2_CID_MIN_BUFFERS_FOR_CAPTURE": abi.CONTROL_MIN_BUFFERS,
        "V4L2_MEMORY_USERPTR": abi.MEMORY_USERPTR,
        "V4L2_BUF_FLAG_ERROR": abi.FLAG_ERROR,
        "V4L2_BUF_FLAG_TIMESTAMP_MASK": abi.FLAG_CLOCK,
        "V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC": abi.FLAG_CLOCK_MONOTONIC,
        "V4L2_PIX_FMT_NV12": abi.CODE_OF["NV12"],
        "V4L2_PIX_FMT_SRGGB8": abi.CODE_OF["RGGB"],
        "V4L2_PIX_FMT_SBGGR8": abi.CODE_OF["BA81"],
        "V4L2_PIX_FMT_SGRBG8": abi.CODE_OF["GRBG"],
        "V4L2_PIX_FMT_SGBRG8": abi.CODE_OF["GBRG"],
        "V4L2_PIX_FMT_BGR24": abi.CODE_OF["BGR3"],
        "V4L2_PIX_FMT_RGB24": abi.CODE_OF["RGB3"],
        "V4L2_PIX_FMT_GREY": abi.CODE_OF["GREY"],
    }
    lines = [f'_Static_assert({name} == {value}u, "");' for name, value in constants.items()]
    lines += [f'_Static_assert(VIDIOC_{name} == {getattr(abi, name)}u, "");' for name in REQUESTS]
    for name, (mirror, places) in fields.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {ctypes.sizeof(mirror)}, "");')
        for there, here in places.items():
            offset = getattr(mirror, here).offset
            lines.append(f'_Static_assert(__builtin_offsetof(struct {name}, {there}) == {offset}, "");')
    source = tmp_path / "check.c"
    source.write_text("#include <linux/videodev2.h>\n" + "\n".join(lines))
    done = subprocess.run(["cc", "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
