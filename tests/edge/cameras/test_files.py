from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.cameras.base import Camera, EndOfStream
from edge.cameras.open import open_camera
from edge.errors import CameraError
from edge.frames import FrameMeta, PixelFormat, Slot

NewSlot = Callable[..., Slot]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Like the `test` folder of a data set: image N is filled with N, of size 20+N x 10."""
    for number, name in enumerate(("broken_small/002.png", "broken_small/010.png", "good/000.png", "good/001.png")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), np.full((10, 20 + number, 3), number, np.uint8))
    (tmp_path / "good" / "readme.txt").write_text("not an image")
    return tmp_path


def drain(camera: Camera, slot: Slot) -> list[tuple[FrameMeta, int]]:
    """Capture to the end; give each frame's meta and its first sample, -1 where it has none."""
    frames = []
    while True:
        try:
            assert camera.capture(slot, 1.0)
        except EndOfStream:
            return frames
        frames.append((slot.meta, int(slot.pixels.flat[0]) if slot.pixels.size else -1))


def test_a_folder_with_sub_folders(folder: Path, new_slot: NewSlot) -> None:
    with open_camera(str(folder), name="cam7") as camera:
        assert (camera.name, camera.live, camera.total) == ("cam7", False, 4)
        slot = new_slot()
        before_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        frames = drain(camera, slot)
        after_ns = time.monotonic_ns()
        with pytest.raises(EndOfStream):
            camera.capture(slot, 1.0)
    assert [meta.source for meta, _ in frames] == [
        "broken_small/002.png",
        "broken_small/010.png",
        "good/000.png",
        "good/001.png",
    ]
    assert [value for _, value in frames] == [0, 1, 2, 3]
    assert [meta.frame_id for meta, _ in frames] == [0, 1, 2, 3]
    times = [meta.captured_ns for meta, _ in frames]
    assert times == sorted(times)
    assert before_ns <= times[0]
    for meta, _ in frames:
        assert meta.captured_ns + meta.capture_ms * 1e6 <= after_ns
        assert meta.capture_ms > 0
        assert abs((meta.captured_at_ns - wall_ns) - (meta.captured_ns - before_ns)) < 1e9
        assert meta.error is None
        assert meta.ticket is None


def test_pixels_lie_in_the_slots_memory(folder: Path, new_slot: NewSlot) -> None:
    slot = new_slot()
    with open_camera(str(folder / "good/001.png")) as camera:
        assert camera.total == 1
        assert camera.capture(slot, 1.0)
    assert slot.meta.source == "001.png"
    assert slot.pixels.shape == (10, 23, 3)
    assert slot.pixel_format is PixelFormat.BGR8
    assert slot.pixels.ctypes.data == slot.memory.ctypes.data
    assert (slot.memory[: 10 * 23 * 3] == 3).all()


def test_unusable_files_are_frames_in_error_and_the_line_goes_on(folder: Path, new_slot: NewSlot) -> None:
    whole = (folder / "good/001.png").read_bytes()
    (folder / "good/000.png").write_bytes(b"")
    (folder / "broken_small/010.png").write_bytes(whole[: len(whole) // 2])
    slot = new_slot()
    with open_camera(str(folder)) as camera:
        frames = drain(camera, slot)
    errors = {meta.source: meta.error for meta, _ in frames if meta.error}
    assert list(errors) == ["broken_small/010.png", "good/000.png"]
    assert all(source in str(error) for source, error in errors.items())
    # A frame in error shows nothing, least of all its predecessor.
    assert [value for _, value in frames] == [0, -1, -1, 3]


def test_globs(folder: Path, new_slot: NewSlot) -> None:
    slot = new_slot()
    with open_camera(f"{folder}/good/*.png") as camera:
        assert [meta.source for meta, _ in drain(camera, slot)] == ["000.png", "001.png"]
    with open_camera(f"{folder}/**/*1*") as camera:
        assert [meta.source for meta, _ in drain(camera, slot)] == ["broken_small/010.png", "good/001.png"]
    (folder / "odd[1].png").write_bytes((folder / "good/001.png").read_bytes())
    with open_camera(f"{folder}/odd[1].png") as camera:
        assert [value for _, value in drain(camera, slot)] == [3]


def test_relative_globs(folder: Path, new_slot: NewSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "good")
    with open_camera("*.png") as camera:
        assert [meta.source for meta, _ in drain(camera, new_slot())] == ["000.png", "001.png"]


@pytest.mark.parametrize("spec", ["{}/empty", "{}/empty/*.png", "{}/good/*.txt"])
def test_nothing_to_see_is_an_error(folder: Path, spec: str) -> None:
    (folder / "empty").mkdir()
    spec = spec.format(folder)
    with pytest.raises(CameraError, match="image") as caught:
        open_camera(spec)
    assert spec in caught.value.problem
    assert ".png" in caught.value.hint


@pytest.mark.parametrize("spec", ["", "nowhere/at-all", "{}/good/readme.txt", "ftp://host/x", "x" * 5000, "a\0b"])
def test_what_is_no_camera_is_named_and_the_accepted_are_listed(folder: Path, spec: str) -> None:
    spec = spec.format(folder)
    with pytest.raises(CameraError) as caught:
        open_camera(spec)
    assert f"'{spec}'" in caught.value.problem
    for word in ("device number", "rtsp://", "video", "folder", "glob", "sim:"):
        assert word in caught.value.hint


@pytest.mark.parametrize(("spec", "path"), [("987", "/dev/video987"), ("/dev/video987", "/dev/video987")])
def test_a_device_that_is_not_there(spec: str, path: str) -> None:
    with pytest.raises(CameraError, match=f"cannot open camera {path}") as caught:
        open_camera(spec)
    assert "cameras on this machine" in caught.value.hint


@pytest.mark.timeout(60)
def test_links_that_lead_back_end(folder: Path, new_slot: NewSlot) -> None:
    # Followed, two of them make 2^40 paths.
    for place in (folder, folder / "good"):
        for name in ("back", "again"):
            (place / name).symlink_to(folder, target_is_directory=True)
    (folder / "good" / "itself.png").symlink_to("itself.png")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").touch()
    for spec in (f"{folder}/**/*.png", f"{folder}/**"):
        with open_camera(spec) as camera:
            frames = drain(camera, new_slot())
        assert [meta.source for meta, _ in frames] == [
            "broken_small/002.png", "broken_small/010.png", "good/000.png", "good/001.png",
        ]  # fmt: skip
    with open_camera(str(folder)) as camera:
        errors = [meta.error for meta, _ in drain(camera, new_slot()) if meta.error]
    assert len(errors) == 1
    assert "itself.png" in errors[0]


@pytest.mark.timeout(60)
def test_a_pipe_among_images_is_a_frame_in_error(folder: Path, new_slot: NewSlot) -> None:
    os.mkfifo(folder / "good" / "pipe.png")
    with open_camera(str(folder)) as camera:
        frames = drain(camera, new_slot())
    assert [meta.source for meta, _ in frames if meta.error] == ["good/pipe.png"]
    assert len(frames) == 5


def test_a_pattern_that_cannot_be_searched_is_named(folder: Path) -> None:
    with pytest.raises(CameraError, match=r"a\*\*b"):
        open_camera(f"{folder}/a**b/*.png")


def test_a_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("good"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(CameraError, match="good: Permission denied"):
        open_camera(str(folder))


def test_a_frame_too_large_to_inspect_does_not_grow_the_slot(folder: Path, new_slot: NewSlot) -> None:
    cv2.imwrite(str(folder / "good" / "wide.png"), np.zeros((1, 20_000), np.uint8))
    slot = new_slot()
    held = slot.memory.size
    with open_camera(str(folder / "good" / "wide.png")) as camera:
        ((meta, _),) = drain(camera, slot)
    assert meta.error is not None
    assert "20000 x 1" in meta.error
    assert slot.memory.size == held
