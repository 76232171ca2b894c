from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge.commands.run import main
from edge.commands.run_arguments import build_parser
from edge.events.codec import EventMessage, StatusMessage
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.events.subscriber import Subscriber
from edge.inspection.portable import PRECISIONS
from edge.inspection.result import Verdict
from edge.inspection.select import RUNTIMES
from tests.tiny_bundle import TinyBundle, TinyProduct, write_tiny_bundle

LIMIT_S = 60.0
PRODUCT = TinyProduct()


def start(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start edge-run as its console script does."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from edge.commands.run import main; sys.exit(main())",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "120"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.fixture
def endpoint() -> str:
    """A free port outside the range from which a waiting subscriber's own connections take theirs."""
    for port in random.Random().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"
    pytest.fail("no free port")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight parts: the third and the sixth defective, the fifth a damaged file."""
    parts = tmp_path / "parts"
    parts.mkdir()
    for index in range(1, 9):
        image = PRODUCT.defective(index) if index in (3, 6) else PRODUCT.good(index)
        cv2.imwrite(str(parts / f"part{index}.png"), image)
    (parts / "part5.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return parts


def receive(subscriber: Subscriber, count: int | None = None) -> list[Event]:
    """Return the next events: so many, or all until the station says that it has stopped."""
    events: list[Event] = []
    while len(events) != count:
        message = subscriber.receive(LIMIT_S)
        assert message is not None, f"nothing more came after {len(events)} events"
        if isinstance(message, EventMessage):
            events.append(message.event)
        elif isinstance(message, StatusMessage) and message.status.state == "stopped":
            break
    return events


def test_each_image_of_a_folder_gets_its_event_and_a_waiting_subscriber_the_first(
    tiny: TinyBundle, folder: Path, endpoint: str, tmp_path: Path
) -> None:
    with Subscriber(endpoint) as subscriber:
        process = start(
            "--camera", folder, "--engine", tiny.path, "--publish", endpoint, "--name", "left", "--threads", 1,
            "--json", "--save", tmp_path / "found",
        )  # fmt: skip
        events = receive(subscriber)
    code, out, err = finish(process)
    assert code == 0, err
    assert [event.seq for event in events] == list(range(1, 9))
    assert [event.source for event in events] == [f"part{index}.png" for index in range(1, 9)]
    assert [event.verdict.value for event in events] == ["ok", "ok", "ng", "ok", "fault", "ng", "ok", "ok"]
    assert {event.camera for event in events} == {"left"}
    assert "part5.png" in events[4].reason
    assert events[2].score == pytest.approx(tiny.score(PRODUCT.defective(3))[0], rel=1e-3)
    assert events[2].threshold == pytest.approx(tiny.threshold)

    (line,) = out.splitlines()
    summary = json.loads(line)
    assert (summary["frames"], summary["ok"], summary["ng"], summary["fault"], summary["skipped"]) == (8, 5, 2, 1, 0)
    assert summary["latency_ms"]["core"]["p50"] > 0
    assert err.startswith("portable: OpenVINO")
    assert "3 score as recorded" in err
    assert "8 frames at" in err
    assert [file.name for file in sorted((tmp_path / "found").iterdir())] == [
        "000002-part3.png", "000005-part6.png",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_in_order(tiny: TinyBundle, endpoint: str, number: signal.Signals) -> None:
    with Subscriber(endpoint) as subscriber:
        process = start("--camera", "sim:", "--engine", tiny.path, "--publish", endpoint, "--threads", 1, "--json")
        events = receive(subscriber, 10)
        process.send_signal(number)
        # Once more, as a shell and its job both may: it must not cut the end short.
        process.send_signal(number)
        events += receive(subscriber)
    code, out, err = finish(process)
    assert code == 0, err
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.frame_id for event in events] == list(range(len(events)))
    assert json.loads(out)["frames"] == len(events)
    assert "frames at" in err


def test_nan_from_the_core_is_a_fault(tiny: TinyBundle, tmp_path: Path, endpoint: str) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for index, image in enumerate((PRODUCT.good(1), PRODUCT.dark(), PRODUCT.good(1))):
        cv2.imwrite(str(parts / f"{index}.png"), image)
    with Subscriber(endpoint) as subscriber:
        process = start("--camera", parts, "--engine", tiny.path, "--publish", endpoint, "--threads", 1)
        events = receive(subscriber)
    assert finish(process)[0] == 0
    assert [event.verdict for event in events] == [Verdict.OK, Verdict.FAULT, Verdict.OK]
    assert "not finite" in events[1].reason
    assert events[1].score is None
    assert events[0].score == events[2].score


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_last_events_leave_cuts_none_off(
    tiny: TinyBundle, folder: Path, endpoint: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Publisher.close

    def interrupted(publisher: Publisher) -> None:
        signal.raise_signal(number)
        close(publisher)

    monkeypatch.setattr(Publisher, "close", interrupted)
    assert main(run_with(tiny, folder, publish=endpoint)) == 0


def test_a_log_that_nobody_reads_any_more_does_not_stop_the_line(tiny: TinyBundle, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*run_with(tiny, folder), "--json", stderr=writer)
    os.close(writer)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert json.loads(out)["frames"] == 8


def damaged(tiny: TinyBundle, tmp_path: Path) -> Path:
    path = tmp_path / "damaged.plan"
    data = tiny.path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def run_with(tiny: TinyBundle, folder: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {"camera": folder, "engine": tiny.path, "publish": "none", "threads": 1, **changes}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def expect(code: int, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run in this process; return the error line after checking that it is one line, with a next step at most."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    (at,) = [index for index, line in enumerate(lines) if line.startswith("error:")]
    assert all(line.startswith("  next:") for line in lines[at + 1 :])
    return lines[at]


def test_a_truncated_bundle_in_a_real_process(tiny: TinyBundle, folder: Path, tmp_path: Path) -> None:
    code, out, err = finish(start(*run_with(tiny, folder, engine=damaged(tiny, tmp_path))))
    assert (code, out) == (3, "")
    assert err.count("error:") == 1
    assert "damaged.plan" in err
    assert len(err.splitlines()) <= 2


def test_an_occupied_port(tiny: TinyBundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert taken in expect(5, run_with(tiny, folder, publish=taken), capsys)


def test_an_unknown_camera(tiny: TinyBundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no-such-folder" in expect(4, run_with(tiny, folder, camera="no-such-folder"), capsys)


def test_an_empty_folder(tiny: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in expect(4, run_with(tiny, tmp_path), capsys)


def test_a_missing_bundle(tiny: TinyBundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.plan" in expect(3, run_with(tiny, folder, engine="nowhere.plan"), capsys)


def test_the_cuda_runtime(tiny: TinyBundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "CUDA" in expect(6, run_with(tiny, folder, runtime="cuda"), capsys)


def test_golden_frames_that_moved(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = write_tiny_bundle(tmp_path / "moved.plan", golden_factor=1.1)
    assert "golden frame" in expect(9, run_with(tiny, folder), capsys)


def test_a_bundle_without_calibration_needs_a_threshold(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = write_tiny_bundle(tmp_path / "fresh.plan", calibrated=False)
    assert "no calibration" in expect(3, run_with(tiny, folder), capsys)
    assert main([*run_with(tiny, folder, threshold=tiny.threshold), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ng"] == 2
    assert "given by hand" in captured.err


def test_a_threshold_by_hand_decides_and_leaves_no_ng_without_a_region(
    tiny: TinyBundle, folder: Path, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    low = tiny.score(PRODUCT.good(1))[0] / 2
    with Subscriber(endpoint) as subscriber:
        assert main(run_with(tiny, folder, publish=endpoint, threshold=low)) == 0
        events = receive(subscriber)
    assert [event.verdict.value for event in events] == ["ng"] * 4 + ["fault"] + ["ng"] * 3
    assert all(event.regions for event in events if event.verdict is Verdict.NG)
    assert {event.threshold for event in events} == {low}
    assert f"{low:.4g} given by hand instead of" in capsys.readouterr().err


def test_count_ends_the_run_early(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*run_with(tiny, Path("sim:"), count=5), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 5


def test_signal_handlers_are_put_back(tiny: TinyBundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(run_with(tiny, folder)) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("count", 0),
        ("count", "x"),
        ("threads", -1),
        ("threshold", "nan"),
        ("threshold", -1),
        ("slots", 2),
        ("slots", 65),
    ],
)
def test_senseless_numbers_are_refused(
    tiny: TinyBundle, folder: Path, option: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(run_with(tiny, folder, **{option: value}))
    assert caught.value.code == 2
    assert f"--{option}" in capsys.readouterr().err


def test_a_folder_for_pictures_that_cannot_be_made(
    tiny: TinyBundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--save" in expect(2, run_with(tiny, folder, save=folder / "part1.png"), capsys)


def test_the_choices_are_those_of_the_runtimes() -> None:
    actions = {action.dest: action for action in build_parser()._actions}
    assert actions["runtime"].choices == RUNTIMES
    assert actions["precision"].choices == PRECISIONS


def test_names_that_are_no_text_get_their_events(tiny: TinyBundle, tmp_path: Path, endpoint: str) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    cv2.imwrite(str(parts / "part1.png"), PRODUCT.defective(1))
    (parts / "part1.png").rename(parts / os.fsdecode(b"caf\xe9 [red].png"))
    (parts / os.fsdecode(b"d\xe9.png")).write_bytes(b"no image")
    with Subscriber(endpoint) as subscriber:
        process = start(
            *run_with(tiny, parts, publish=endpoint, save=tmp_path / "found"),
        )
        events = receive(subscriber)
    code, _, err = finish(process)
    assert code == 0, err
    assert [(event.source, event.verdict) for event in events] == [
        ("caf\\udce9 [red].png", Verdict.NG), ("d\\udce9.png", Verdict.FAULT),
    ]  # fmt: skip
    assert "d\\udce9.png" in events[1].reason
    assert len(list((tmp_path / "found").iterdir())) == 1


def test_a_full_disk_ends_the_saving_and_leaves_no_part_of_a_picture(
    tiny: TinyBundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.files.os.replace", full)
    assert main([*run_with(tiny, folder, save=tmp_path / "found"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["frames"] == 8
    assert captured.err.count("No space left on device; no more pictures are saved") == 1
    assert list((tmp_path / "found").iterdir()) == []


def test_a_live_camera_gets_all_the_slots_it_needs(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*run_with(tiny, Path("sim:rate=50,count=20"), slots=3), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] > 0
