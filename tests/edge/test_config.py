from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.commands.run_arguments import parse
from edge.config import CameraConfig, check_trigger
from edge.errors import UsageError


def test_cameras_have_their_own_names_or_numbered_ones() -> None:
    _, cameras = parse(["--engine", "x.plan", "--camera", "sim:seed=3", "--camera", "top=rtsp://h/a=b"])
    assert [(camera.name, camera.source) for camera in cameras] == [("cam0", "sim:seed=3"), ("top", "rtsp://h/a=b")]
    _, cameras = parse(["--engine", "x.plan", "--camera", "0", "--name", "side", "--count", "3"])
    assert cameras == [CameraConfig(name="side", source="0", count=3)]


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.png").touch()
    _, cameras = parse(["--engine", "x.plan", "--camera", "a=b.png"])
    assert [(camera.name, camera.source) for camera in cameras] == [("cam0", "a=b.png")]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no camera"),
        (["--camera", "0", "--camera", "1", "--name", "top"], "--name top for 2 cameras"),
        (["--camera", "top=0", "--camera", "top=1"], "two cameras are called 'top'"),
        (["--camera", "0", "--deadline-ms", "50"], "no trigger"),
        (["--camera", "0", "--trigger", "whistle"], "no trigger 'whistle'"),
        (["--camera", "0", "--trigger", "gpio:x"], "names no GPIO line"),
        (["--camera", "0", "--name", "a/b"], "'a/b' cannot be the name"),
    ],
)
def test_cameras_that_make_no_sense(words: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse(["--engine", "x.plan", *words])


def test_a_station_needs_a_bundle() -> None:
    with pytest.raises(UsageError, match="no bundle"):
        parse(["--camera", "0"])


@pytest.mark.parametrize("trigger", ["none", "request", "camera", "gpio:0:17", "gpio:/dev/gpiochip2:3:falling"])
def test_triggers(trigger: str) -> None:
    assert check_trigger(trigger) == trigger


def write(folder: Path, text: str) -> str:
    file = folder / "station.toml"
    file.write_text(text, encoding="utf-8")
    return os.fspath(file)


def test_a_file_says_what_the_command_line_could_and_the_command_line_wins(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        engine = "redi.plan"
        publish = "ipc:///run/redi/events"
        threads = 2
        follow = true
        require-signed = false
        journal-days = 1.5
        [[camera]]
        name = "top"
        source = "0"
        trigger = "request"
        deadline-ms = 80
        [[camera]]
        name = "side"
        source = "sim:rate=5"
        slots = 6
        """,
    )
    args, cameras = parse(["--config", file, "--threads", "4"])
    assert (args.engine, args.publish, args.threads) == (Path("redi.plan"), "ipc:///run/redi/events", 4)
    assert (args.follow, args.require_signed, args.journal_days) == (True, False, 1.5)
    assert cameras == [
        CameraConfig(name="top", source="0", trigger="request", deadline_ms=80.0),
        CameraConfig(name="side", source="sim:rate=5", slots=6),
    ]
    _, cameras = parse(["--config", file, "--camera", "1"])
    assert cameras == [CameraConfig(name="cam0", source="1")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("engine = ", "not TOML"),
        ("thresold = 3", "no option 'thresold'"),
        ("camera = 3", r"\[\[camera\]\]|list of tables"),
        ("[[camera]]\nname = 'a'", "missing required field `source`"),
        ("[[camera]]\nsource = '0'\nspeed = 3", "unknown field `speed`"),
        ("[[camera]]\nsource = '0'\ndeadline-ms = -3", "> 0"),
        ("[[camera]]\nsource = '0'\nslots = 1", ">= 3"),
        ("[[camera]]\nsource = '0'\n[[camera]]\nsource = '1'", "two cameras are called 'cam0'"),
        ("follow = 'yes'", "follow = 'yes'"),
        ("publish = true", "publish = True"),
        ("publish = ['a']", "publish = "),
        ("config = 'other.toml'", "no option 'config'"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_files_that_make_no_sense_are_named_with_the_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        parse(["--config", write(tmp_path, text)])
    assert "station.toml" in caught.value.problem or "cameras are called" in caught.value.problem


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        parse(["--config", str(tmp_path / "none.toml")])
