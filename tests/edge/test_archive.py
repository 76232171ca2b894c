from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge.archive import Archive, ArchiveState
from edge.archive_files import ArchiveFiles, camera_folder, picture_name
from edge.archive_policy import KeepPolicy, keep_policy
from edge.commands.archive_arguments import add_archive_arguments, open_archive
from edge.events.schema import Event
from edge.frames import FrameMeta, PixelFormat, Slot
from edge.inspection.result import Verdict

LIMIT_S = 20.0
ALL = KeepPolicy(every=1)
SECOND = 1_000_000_000
NOON = 1_795_348_800 * SECOND  # 2026-11-22T12:00:00Z


def event(seq: int, verdict: Verdict = Verdict.NG, *, camera: str = "cam0", score: float = 1.0, at: int = 0) -> Event:
    return Event(
        boot_id="00112233aabbccdd",
        seq=seq,
        camera=camera,
        source="part.png",
        frame_id=seq,
        verdict=verdict,
        captured_at_ns=at or NOON + seq * SECOND,
        decided_at_ns=NOON,
        bundle_id="b",
        calibration_id="c",
        score=score,
        peak=2.0,
        threshold=1.0,
        pixel_threshold=0.5,
        frame_size=(40, 30),
        mask_size=(8, 8),
        journal_id="8899aabbccddeeff",
    )


def slot(seed: int = 0, pixel_format: PixelFormat = PixelFormat.BGR8, size: tuple[int, int] = (30, 40)) -> Slot:
    made = Slot(0, np.zeros(0, np.uint8), np.zeros((8, 8), np.float32), np.zeros((8, 1), np.uint8), meta=FrameMeta())
    pixels = made.shape_pixels(*size, pixel_format)
    pixels[...] = np.random.default_rng(seed).integers(0, 256, pixels.shape)
    return made


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: path.name)


def wait_until(ready: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(int(LIMIT_S / 0.01)):
        if ready():
            return
        waiting.wait(0.01)
    raise AssertionError


def test_policies() -> None:
    near, far = event(1, Verdict.OK, score=0.85), event(1, Verdict.OK, score=0.75)
    for verdict in (Verdict.NG, Verdict.LATE, Verdict.FAULT):
        for text in ("all", "ng", "borderline", "sample:3"):
            assert keep_policy(text).wants(event(1, verdict, score=0.0), 1)
    assert keep_policy("all").wants(far, 1)
    assert not keep_policy("ng").wants(near, 0)
    assert keep_policy("borderline").wants(near, 1)
    assert not keep_policy("borderline").wants(far, 1)
    assert keep_policy("borderline:0.3").wants(far, 1)
    assert not keep_policy("borderline").wants(msgspec.structs.replace(near, threshold=None), 0)
    assert [number for number in range(8) if keep_policy("sample:3").wants(far, number)] == [0, 3, 6]


@pytest.mark.parametrize(
    "text",
    [
        *("", "none", "all:1", "ng:", "borderline:", "borderline:0", "borderline:2", "borderline:nan"),
        *("sample", "sample:0", "sample:-1", "sample:x", "sample:²", "sample:9999999999"),
    ],
)
def test_other_policies_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="none of all, ng"):
        keep_policy(text)


@pytest.mark.parametrize("pixel_format", list(PixelFormat))
def test_what_is_kept_is_the_frame_and_its_event(tmp_path: Path, pixel_format: PixelFormat) -> None:
    frame = slot(3, pixel_format)
    original = frame.pixels.copy()
    sent = event(7)
    with Archive(tmp_path / "new" / "archive", ALL) as archive:
        assert archive.offer(frame, sent, b"mask")
        # The slot goes round at once.
        frame.pixels[...] = 0
    (picture,) = pictures(tmp_path)
    assert picture.parent == tmp_path / "new" / "archive" / "cam0" / "2026-11-22"
    assert picture.name == picture_name(sent) + ".png"
    assert picture.name.startswith("20261122T120007.000000000Z-")
    assert picture.name.endswith("-7-ng.png")
    shown = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    # OpenCV names a mosaic by its second row and column.
    to_bgr = {
        PixelFormat.RGB8: cv2.COLOR_RGB2BGR,
        PixelFormat.NV12: cv2.COLOR_YUV2BGR_NV12,
        PixelFormat.BAYER_RGGB: cv2.COLOR_BayerBG2BGR,
        PixelFormat.BAYER_BGGR: cv2.COLOR_BayerRG2BGR,
        PixelFormat.BAYER_GRBG: cv2.COLOR_BayerGB2BGR,
        PixelFormat.BAYER_GBRG: cv2.COLOR_BayerGR2BGR,
    }
    seen = cv2.cvtColor(original, to_bgr[pixel_format]) if pixel_format in to_bgr else original
    assert np.array_equal(shown, seen)
    told = json.loads(picture.with_suffix(".json").read_text())
    assert (told["seq"], told["verdict"], told["mask"]) == (7, "ng", "mask")
    assert archive.counters("cam0") == {"archived": 1, "archive_dropped": 0, "archive_state": 0}
    assert archive.size_bytes == 2 * 4096


def test_a_policy_counts_each_camera_for_itself(tmp_path: Path) -> None:
    with Archive(tmp_path, keep_policy("sample:2")) as archive:
        for seq in range(1, 5):
            for camera in ("cam0", "cam1"):
                archive.offer(slot(), event(seq, Verdict.OK, camera=camera))
    assert sorted(path.name.split("-")[-2] for path in pictures(tmp_path)) == ["1", "1", "3", "3"]
    assert archive.counters("cam1")["archived"] == 2
    assert archive.counters("other")["archived"] == 0


def test_a_frame_without_bytes_has_no_picture(tmp_path: Path) -> None:
    empty = slot()
    empty.shape_pixels(0, 0, PixelFormat.BGR8)
    with Archive(tmp_path, ALL) as archive:
        assert not archive.offer(empty, event(1, Verdict.FAULT))
        assert not archive.offer(slot(), msgspec.structs.replace(event(1, Verdict.FAULT), frame_size=(0, 0)))
    assert archive.counters("cam0")["archive_dropped"] == 0


def test_names_sort_by_time_and_are_safe_and_unique() -> None:
    times = [0, 1, NOON, NOON + 1, NOON + SECOND, 2 * NOON]
    names = [picture_name(event(1, at=at)) for at in times[1:]]
    assert names == sorted(names)
    assert picture_name(event(1)) != picture_name(msgspec.structs.replace(event(1), journal_id="other"))
    cameras = ["cam0", "a b", "a_b", "..", ".", ".cam", "ä" * 64, "😀" * 64, "cam:0", "CON~1"]
    folders = [camera_folder(camera) for camera in cameras]
    assert folders[0] == "cam0"
    assert len(set(folders)) == len(cameras)
    for folder in folders:
        assert len(folder) < 100
        assert folder.isascii()
        assert not folder.startswith(".")
        assert "/" not in folder


def test_the_oldest_go_first_over_all_cameras_and_restarts(tmp_path: Path) -> None:
    foreign = [tmp_path / "notes.txt", tmp_path / "cam0" / "2026-11-22" / "mine.png", tmp_path / "cam9" / "x.png"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 50_000)
    day = 86_400 * SECOND
    budget = 5 * 2 * 4096
    seq = 0
    for _ in range(3):
        with Archive(tmp_path, ALL, budget_bytes=budget) as archive:
            for _ in range(3):
                seq += 1
                archive.offer(slot(), event(seq, camera=f"cam{seq % 2}", at=NOON + seq * day // 2))
                assert archive.flush(LIMIT_S)
                assert archive.size_bytes <= budget
    kept = [int(path.name.split("-")[-2]) for path in pictures(tmp_path) if path not in foreign]
    assert kept == [5, 6, 7, 8, 9]
    assert len(list(tmp_path.rglob("*.json"))) == 5
    assert all(path.exists() for path in foreign)
    # Days that are over leave no empty folders behind.
    assert not (tmp_path / "cam1" / "2026-11-22").exists()


def test_what_a_kill_left_is_removed_and_half_pairs_are_counted(tmp_path: Path) -> None:
    with Archive(tmp_path, ALL) as archive:
        archive.offer(slot(), event(1))
    (picture,) = pictures(tmp_path)
    picture.with_suffix(".json").unlink()
    rest = picture.with_name(f".{picture.name}.0123abcd.part")
    rest.write_bytes(b"half")
    with Archive(tmp_path, ALL, budget_bytes=2 * 4096) as archive:
        archive.offer(slot(), event(2))
    assert not rest.exists()
    assert [path.name.split("-")[-2] for path in pictures(tmp_path)] == ["2"]


def test_a_picture_above_the_budget_is_refused(tmp_path: Path) -> None:
    said: list[str] = []
    with Archive(tmp_path, ALL, budget_bytes=4096, report=said.append) as archive:
        archive.offer(slot(), event(1))
    assert archive.counters("cam0") == {"archived": 0, "archive_dropped": 1, "archive_state": 0}
    assert "above the archive's whole budget" in said[0]


def test_what_the_pool_has_no_room_for_is_dropped_and_never_waits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the folder's place")
    size = slot().pixels.size
    with Archive(tmp_path / "file", ALL, pool_bytes=3 * size, retry_s=0.01) as archive:
        assert [archive.offer(slot(), event(seq)) for seq in range(1, 6)] == [True] * 3 + [False] * 2
        # A larger frame has no room either; when the pool is empty, it has.
        assert not archive.offer(slot(size=(300, 400)), event(6))
        wait_until(lambda: archive.state is ArchiveState.DEGRADED)
        assert archive.counters("cam0") == {"archived": 0, "archive_dropped": 3, "archive_state": 1}
        (tmp_path / "file").unlink()
        assert archive.flush(LIMIT_S)
        assert archive.offer(slot(size=(300, 400)), event(7))
        assert archive.flush(LIMIT_S)
        assert archive.state is ArchiveState.OK
    assert archive.counters("cam0") == {"archived": 4, "archive_dropped": 3, "archive_state": 0}


def test_a_disk_that_fails_is_told_and_its_return_too(tmp_path: Path) -> None:
    place = tmp_path / "archive"
    place.write_text("no folder")
    said: list[str] = []
    archive = Archive(place, ALL, report=said.append, retry_s=0.01)
    try:
        archive.offer(slot(), event(1))
        wait_until(lambda: archive.state is ArchiveState.DEGRADED)
        assert archive.problem == "Not a directory"
        place.unlink()
        # Nothing new has to come for that.
        wait_until(lambda: archive.state is ArchiveState.OK)
        archive.flush(LIMIT_S)
    finally:
        archive.close()
    assert len(pictures(tmp_path)) == 1
    assert len(said) == 2
    assert "Not a directory" in said[0]
    assert said[1].endswith("again")


def test_an_archive_that_can_never_be_written_ends_in_time_and_counts(tmp_path: Path) -> None:
    place = tmp_path / "archive"
    place.write_text("no folder")
    with Archive(place, ALL, retry_s=60.0) as archive:
        for seq in range(1, 4):
            archive.offer(slot(), event(seq))
        wait_until(lambda: archive.state is ArchiveState.DEGRADED)
    assert archive.counters("cam0")["archive_dropped"] == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_pictures_alone_and_recovers(small_disk: Path) -> None:
    hog = small_disk / "hog"
    with Archive(small_disk / "archive", ALL, retry_s=0.01, pool_frames=4) as archive:
        assert archive.offer(slot(1), event(1))
        assert archive.flush(LIMIT_S)
        subprocess.run(["dd", "if=/dev/zero", f"of={hog}", "bs=4096"], capture_output=True)
        taken = [archive.offer(slot(seq), event(seq)) for seq in range(2, 12)]
        wait_until(lambda: archive.state is ArchiveState.DEGRADED)
        assert archive.problem == "No space left on device"
        assert sum(taken) == 4
        # Nothing half written stays behind.
        assert len(list((small_disk / "archive").rglob("*.*"))) == 2
        hog.unlink()
        assert archive.flush(LIMIT_S)
        assert archive.counters("cam0") == {"archived": 5, "archive_dropped": 6, "archive_state": 0}
    for picture in pictures(small_disk):
        seq = int(picture.name.split("-")[-2])
        assert np.array_equal(cv2.imread(str(picture)), slot(seq).pixels)


def test_a_picture_that_can_never_be_written_keeps_no_other_waiting(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Archive(tmp_path, ALL, retry_s=0.01) as archive:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            # The first is too large for ever.
            archive.offer(slot(1, size=(100, 100)), event(1))
            for seq in (2, 3):
                archive.offer(slot(seq), event(seq))
            assert archive.flush(LIMIT_S)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert archive.counters("cam0") == {"archived": 2, "archive_dropped": 1, "archive_state": 0}
    assert len(pictures(tmp_path)) == 2


def test_the_folder_may_vanish_while_it_runs(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive", ALL, budget_bytes=2 * 4096, retry_s=0.01) as archive:
        archive.offer(slot(), event(1))
        assert archive.flush(LIMIT_S)
        shutil.rmtree(tmp_path / "archive")
        archive.offer(slot(), event(2))
        assert archive.flush(LIMIT_S)
    assert archive.counters("cam0")["archived"] == 2


def test_links_and_foreign_names_are_never_deleted(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    day = outside / "2026-11-22"
    day.mkdir(parents=True)
    precious = day / (picture_name(event(1)) + ".png")
    precious.write_bytes(b"x" * 100_000)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "cam0").symlink_to(outside)
    files = ArchiveFiles(tmp_path / "archive", 3 * 4096)
    assert files.write("cam1", picture_name(event(2)), b"x" * 4096, b"{}")
    assert files.write("cam1", picture_name(event(3)), b"x" * 4096, b"{}")
    assert precious.exists()


def test_the_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_archive_arguments(parser)
    assert open_archive(parser.parse_args([])) is None
    arguments = parser.parse_args(["--archive", "/nowhere"])
    assert arguments.archive_keep == KeepPolicy()
    archive = open_archive(parser.parse_args(["--archive", "x", "--archive-keep", "all", "--archive-budget", "2G"]))
    assert archive is not None
    with archive:
        assert (archive.keep, archive.budget_bytes) == (ALL, 2 << 30)
