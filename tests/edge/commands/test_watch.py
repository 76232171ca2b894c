from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from edge.cameras.sim import SimLine
from edge.commands.watch import main
from edge.events.control import Control, control_endpoint
from edge.events.journal import Journal
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.rle import encode_mask
from edge.events.schema import Event
from edge.inspection.result import Region, Verdict

ROOT = Path(__file__).parents[3]
MASK = np.zeros((32, 32), bool)
MASK[8:16, 4:12] = True
COUNTS = encode_mask(np.packbits(MASK, axis=1))


def event(publisher: Publisher, verdict: Verdict = Verdict.OK, **changes: Any) -> Event:
    found = [Region(bbox=(8, 16, 16, 16), area_px=256, peak=2.0, centroid=(16.0, 24.0))]
    fields: dict[str, Any] = {
        "boot_id": publisher.boot_id,
        "camera": publisher.camera,
        "source": "parts/000.png",
        "frame_id": 0,
        "verdict": verdict,
        "captured_at_ns": 1_767_225_600_123_456_789,
        "decided_at_ns": 1_767_225_600_140_000_000,
        "bundle_id": "b",
        "calibration_id": "c",
        "score": None if verdict is Verdict.FAULT else 0.5,
        "peak": None if verdict is Verdict.FAULT else 0.6,
        "threshold": 1.0,
        "pixel_threshold": 0.9,
        "frame_size": (64, 64),
        "mask_size": (32, 32),
        "regions": found if verdict is Verdict.NG else [],
        "reason": "truncated file" if verdict is Verdict.FAULT else "",
        "latency_ms": {"total": 12.5},
    }
    fields.update(changes)
    if "seq" not in fields:
        fields["seq"] = publisher.next_seq()
    return Event(**fields)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
        yield publisher


@pytest.fixture
def watch(publisher: Publisher) -> Callable[..., None]:
    """Run edge-watch in this process: `script` publishes once it is subscribed."""

    def run(script: Callable[[], None], *arguments: str) -> None:
        def publish() -> None:
            assert publisher.outlet.wait_for_subscriber(20.0)
            publisher.settle()
            publisher.status("running", {})
            script()
            publisher.status("stopped", {})

        thread = threading.Thread(target=publish)
        thread.start()
        code = main([publisher.endpoint, "--until-stopped", *arguments])
        thread.join()
        assert code == 0

    return run


def read(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image, np.uint8)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines(watch: Callable[..., None], publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> None:
        publisher.publish(event(publisher), b"")
        publisher.publish(event(publisher, Verdict.NG), COUNTS)
        publisher.publish(event(publisher, Verdict.FAULT), b"")

    watch(script, "--json")
    out, err = capsys.readouterr()
    ok, ng, fault = lines(out)
    assert set(ok) == {*Event.__struct_fields__, "mask"}
    assert [each["seq"] for each in (ok, ng, fault)] == [1, 2, 3]
    assert [each["verdict"] for each in (ok, ng, fault)] == ["ok", "ng", "fault"]
    assert (ok["source"], ok["score"], ok["threshold"], ok["regions"]) == ("parts/000.png", 0.5, 1.0, [])
    assert ng["regions"][0]["bbox"] == [8, 16, 16, 16]
    assert ng["mask"] == COUNTS.decode()
    assert fault["score"] is None
    assert "3 events: 1 ok, 1 ng, 0 late, 1 fault; 0 missing" in err


def test_the_table(watch: Callable[..., None], publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> None:
        publisher.publish(event(publisher, source="x" * 50 + "/1.png"), b"")
        publisher.publish(event(publisher, Verdict.NG), COUNTS)
        publisher.publish(event(publisher, Verdict.FAULT, source="\x1b[2J[bold]", decided_at_ns=-(2**63)), b"")

    watch(script)
    head, ok, ng, fault = capsys.readouterr().out.splitlines()
    assert head.split() == ["seq", "time", "camera", "source", "verdict", "score", "limit", "ms", "regions"]
    assert "…xxx" in ok
    assert "xx/1.png  OK " in ok
    assert "NG" in ng
    assert "1, largest 16x16 at 8,16" in ng
    assert "?[2J[bold]" in fault
    assert "truncated file" in fault
    # The columns stand in line.
    assert len({line.index(word) for line, word in ((head, "verdict"), (ok, "OK "), (ng, "NG "))}) == 1


def test_only_and_count(watch: Callable[..., None], publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> None:
        for verdict in (Verdict.OK, Verdict.NG, Verdict.OK, Verdict.FAULT, Verdict.NG, Verdict.OK):
            publisher.publish(event(publisher, verdict), b"")

    watch(script, "--json", "--only", "NG,fault", "--count", "2")
    out, err = capsys.readouterr()
    assert [each["seq"] for each in lines(out)] == [2, 4]
    assert "4 events: 2 ok, 1 ng, 0 late, 1 fault; 0 missing" in err


def test_gaps_are_reported(
    watch: Callable[..., None], publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    def script() -> None:
        # The first is missed too: the station said before that it had sent none.
        for seq in (2, 3, 7, 8, 8, 10):
            publisher.publish(event(publisher, seq=seq), b"")
        publisher.publish(event(publisher, seq=41, boot_id="another"), b"")
        publisher.publish(event(publisher, seq=42, boot_id="another"), b"")
        publisher.last_seq = 12

    watch(script, "--json")
    err = capsys.readouterr().err
    assert "cam0: event 1 is missing" in err
    assert "cam0: events 4 to 6 are missing" in err
    assert "cam0: event 9 is missing" in err
    assert "cam0: events 11 to 12 are missing" in err
    assert "8 events: 8 ok, 0 ng, 0 late, 0 fault; 7 missing" in err


def test_a_camera_by_name(watch: Callable[..., None], publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> None:
        publisher.publish(event(publisher, camera="cam00"), b"")
        publisher.publish(event(publisher, camera="cam0"), b"")

    watch(script, "--json", "--camera", "cam0")
    assert [each["camera"] for each in lines(capsys.readouterr().out)] == ["cam0"]


def test_masks_and_overlays_are_saved(watch: Callable[..., None], publisher: Publisher, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "parts").mkdir(parents=True)
    photo = np.full((64, 64, 3), 77, np.uint8)
    cv2.imwrite(str(images / "parts" / "000.png"), photo)
    cv2.imwrite(str(tmp_path / "secret.png"), np.full((64, 64, 3), 200, np.uint8))

    def script() -> None:
        publisher.publish(event(publisher), b"")
        publisher.publish(event(publisher, Verdict.NG), COUNTS)
        publisher.publish(event(publisher, Verdict.NG, source="../secret.png"), COUNTS)
        publisher.publish(event(publisher, Verdict.NG, source="gone.png", boot_id="../../x"), COUNTS)
        publisher.publish(event(publisher, Verdict.NG, frame_size=(1 << 28, 1), mask_size=(1, 1 << 28)), b"")
        publisher.publish(event(publisher, Verdict.NG), b"garbage \xff")

    masks, overlays = tmp_path / "masks", tmp_path / "deep" / "overlays"
    watch(script, "--save-masks", str(masks), "--save-overlays", str(overlays), "--images", str(images))
    boot = publisher.boot_id[:8]
    names = [f"{boot}-0000002-parts_000.png", f"{boot}-0000003-.._secret.png", ".._.._x-0000004-gone.png"]
    assert sorted(path.name for path in masks.iterdir()) == sorted(names)
    assert sorted(path.name for path in overlays.iterdir()) == sorted([f"{boot}-0000001-parts_000.png", *names])
    saved = read(masks / names[0])
    assert np.array_equal(saved, np.kron(MASK, np.ones((2, 2))) * 255)
    ok = read(overlays / f"{boot}-0000001-parts_000.png")
    assert np.array_equal(ok[-64:], photo)
    # A source that leads out of the folder, and one that is not there, are drawn on black.
    for name in names[1:]:
        assert (read(overlays / name)[-64:] == 0).all(axis=2).mean() > 0.5


def test_a_link_to_itself_is_an_image_that_is_not_found(
    watch: Callable[..., None], publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    overlays = tmp_path / "overlays"
    watch(
        lambda: publisher.publish(event(publisher, source="loop.png"), b""),
        "--save-overlays", str(overlays), "--images", str(tmp_path),
    )  # fmt: skip
    (saved,) = overlays.iterdir()
    assert not read(saved)[-64:].any()


def test_parts_of_a_simulated_line_are_drawn_again(
    watch: Callable[..., None], publisher: Publisher, tmp_path: Path
) -> None:
    def script() -> None:
        publisher.publish(event(publisher, source="sim/3/000005", frame_size=(96, 80)), b"")
        publisher.publish(event(publisher, source="sim/4/000005", frame_size=(96, 80)), b"")

    watch(script, "--save-overlays", str(tmp_path), "--images", "sim:seed=3,width=96,height=80")
    same, other = (read(path) for path in sorted(tmp_path.iterdir()))
    assert np.array_equal(same[-80:], SimLine(3, 96, 80).part(5).image)
    assert not other[-80:].any()


def test_idle_ends_watching(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([publisher.endpoint, "--json", "--idle", "0.2"]) == 0
    assert "0 events" in capsys.readouterr().err


def test_waiting_for_a_station_is_said_once(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"tcp://127.0.0.1:{free_port}", "--idle", "2.2"]) == 0
    assert capsys.readouterr().err.count("waiting for a station") == 1


@pytest.fixture
def free_port() -> int:
    with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
        return int(publisher.endpoint.rpartition(":")[2])


def test_foreign_messages_are_named_and_skipped(
    capsys: pytest.CaptureFixture[str], context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    sender = context.socket(zmq.XPUB)
    sender.bind("tcp://127.0.0.1:*")

    def send() -> None:
        for _ in range(2):
            assert sender.poll(20_000)
            sender.recv()
        for _ in range(9):
            sender.send_multipart([b"redi/event/\x1b[2J", b"junk", b""])

    thread = threading.Thread(target=send)
    thread.start()
    assert main([sender.getsockopt_string(zmq.LAST_ENDPOINT), "--json", "--idle", "0.7"]) == 0
    thread.join()
    out, err = capsys.readouterr()
    assert out == ""
    assert "9 foreign or damaged messages skipped" in err
    assert 1 <= err.count("skipped: ") <= 3
    assert "\x1b[2J" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "bad"],
        ["--only", ""],
        ["--count", "0"],
        ["--count", "1.5"],
        ["--idle", "-1"],
        ["--idle", "nan"],
        ["--no-such-option"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: edge-watch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 5),
        (["tcp://127.0.0.1"], 5),
        (["--images", "."], 2),
        (["--save-overlays", "{tmp}/o", "--images", "{tmp}/missing"], 2),
        (["--save-overlays", "{tmp}/o", "--images", "sim:colour=red"], 4),
        (["--save-masks", "{tmp}/file/masks"], 2),
    ],
)
def test_bad_requests_are_one_clear_error(
    arguments: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "next: " in err
    assert "Traceback" not in err


def test_an_unwritable_folder_ends_with_1(publisher: Publisher, tmp_path: Path) -> None:
    target = tmp_path / "masks"
    target.mkdir()
    (target / f"{publisher.boot_id[:8]}-0000001-parts_000.png").mkdir()

    def publish() -> None:
        assert publisher.outlet.wait_for_subscriber(20.0)
        publisher.settle()
        publisher.publish(event(publisher, Verdict.NG), COUNTS)

    thread = threading.Thread(target=publish)
    thread.start()
    assert main([publisher.endpoint, "--save-masks", str(target)]) == 1
    thread.join()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Publisher]:
    """A station with a journal, that answers requests."""
    endpoint = f"ipc://{tmp_path}/events"
    with (
        Journal(tmp_path / "cam0") as journal,
        Publisher(endpoint, camera="cam0", journal=journal) as publisher,
        Control(control_endpoint(endpoint), context=publisher.outlet.context) as control,
    ):
        serve_events(control, [publisher])
        control.start()
        publisher.status("running", {})
        yield publisher


def publish_kept(publisher: Publisher, count: int) -> None:
    journal_id = publisher.journal_id
    publisher.publish_all([(event(publisher, journal_id=journal_id), b"") for _ in range(count)])


def test_durable_watching_goes_on_where_it_ended(
    kept: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [kept.endpoint, "--json", "--durable", str(tmp_path / "cursor")]
    publish_kept(kept, 5)
    assert main([*arguments, "--count", "3"]) == 0
    publish_kept(kept, 5)
    assert main([*arguments, "--count", "7"]) == 0
    assert [each["seq"] for each in lines(capsys.readouterr().out)] == list(range(1, 11))
    kept.status("stopped", {})
    publish_kept(kept, 2)
    # Not before all that was published is there.
    kept.status("stopped", {})
    assert main([*arguments, "--until-stopped"]) == 0
    out, err = capsys.readouterr()
    assert [each["seq"] for each in lines(out)] == [11, 12]
    assert "2 events: 2 ok" in err


def test_a_durable_log_has_each_event_once_however_often_watching_is_killed(kept: Publisher, tmp_path: Path) -> None:
    chance = random.Random(5)
    log = tmp_path / "events.jsonl"
    for life in range(4):
        publish_kept(kept, 200)
        with log.open("ab") as out:
            watcher = start(kept.endpoint, "--json", "--durable", str(tmp_path / "cursor"), stdout=out.fileno())
            size = log.stat().st_size
            while log.stat().st_size < size + chance.randint(1, 40_000):
                assert watcher.poll() is None
                threading.Event().wait(0.002)
            watcher.kill()
            watcher.communicate()
        if life % 2:
            # A line that was cut short, as a full pipe or disk may do.
            with log.open("ab") as out:
                out.write(b'{"boot_id": "half a li')
    total = 800
    with log.open("ab") as out:
        watcher = start(
            kept.endpoint, "--json", "--durable", str(tmp_path / "cursor"), "--idle", "1", stdout=out.fileno()
        )
        _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, err
    assert [json.loads(line)["seq"] for line in log.read_text().splitlines()] == list(range(1, total + 1))


def test_what_cannot_be_had_any_more_is_said(
    kept: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [kept.endpoint, "--json", "--durable", str(tmp_path / "cursor")]
    publish_kept(kept, 1)
    assert main([*arguments, "--count", "1"]) == 0
    publish_kept(kept, 40)
    assert kept.journal is not None
    store = kept.journal._files.store
    assert store is not None
    store.prune(0, 0, step=10)
    assert main([*arguments, "--count", "31"]) == 0
    out, err = capsys.readouterr()
    assert [each["seq"] for each in lines(out)] == [1, *range(11, 42)]
    assert "cam0: events 2 to 10: pruned" in err
    assert "31 ok, 0 ng, 0 late, 0 fault; 9 missing" in err


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--durable", "{tmp}/missing/cursor"], 12), (["--control", "tcp://127.0.0.1:1"], 2)]
)
def test_bad_durable_arguments(
    arguments: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == code
    assert "next: " in capsys.readouterr().err


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


def start(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    code = "import sys; from edge.commands.watch import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    STARTED.append(process)
    return process


def test_processes_that_wait_receive_the_first_event_at_once_and_end_on_ctrl_c(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    watchers = [start(endpoint, "--json") for _ in range(3)]
    for watcher in watchers:
        assert watcher.stderr is not None
        assert "waiting for a station" in watcher.stderr.readline()
    with Publisher(endpoint, camera="cam0") as publisher:
        publisher.settle()
        publisher.publish(event(publisher), b"")
        for watcher in watchers:
            assert watcher.stdout is not None
            # While the station still runs: lines do not wait in a buffer.
            assert json.loads(watcher.stdout.readline())["seq"] == 1
            watcher.send_signal(signal.SIGINT)
            _, err = watcher.communicate(timeout=30)
            assert watcher.returncode == 0
            assert "1 events: 1 ok" in err
            assert "Traceback" not in err


def test_a_reader_that_goes_away_ends_watching_quietly(publisher: Publisher) -> None:
    watcher = start(publisher.endpoint, "--json")
    assert watcher.stdout is not None
    assert watcher.stderr is not None
    watcher.stdout.close()
    assert publisher.outlet.wait_for_subscriber(30.0)
    publisher.settle()
    deadline = time.monotonic() + 30
    while watcher.poll() is None and time.monotonic() < deadline:
        publisher.publish(event(publisher), b"")
        threading.Event().wait(0.05)
    err = watcher.stderr.read()
    watcher.stderr.close()
    assert watcher.returncode == 0
    assert "Traceback" not in err
    assert "error" not in err
