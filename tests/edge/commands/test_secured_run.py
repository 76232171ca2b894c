"""edge-run and edge-watch with keys, as processes, and what each refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.commands.run import main as edge_run
from edge.commands.watch import main as edge_watch
from edge.keys import KeyFolder, Kind
from edge.signing import sign_bundle
from tests.tiny_bundle import TinyBundle

LIMIT_S = 120.0


@pytest.fixture
def station(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "station-keys")
    folder.make("station", Kind.CONNECT)
    return folder


@pytest.fixture
def panel(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "panel-keys")
    folder.make("panel", Kind.CONNECT)
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def start(command: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; from edge.commands.{command} import main; sys.exit(main())",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "500"},
    )


def test_a_station_with_keys_serves_its_client_and_tells_a_stranger(
    tiny: TinyBundle, station: KeyFolder, panel: KeyFolder, tmp_path: Path, free_port: int
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port}"
    server = station.path / "station.public"
    station.allow(panel.pair(Kind.CONNECT).public)
    stranger = KeyFolder(tmp_path / "stranger")
    stranger_key = stranger.make("stranger", Kind.CONNECT)
    friend = start(
        "watch", endpoint, "--server-key", server, "--keys", panel.path, "--json", "--until-stopped", "--idle", 60
    )
    other = start("watch", endpoint, "--server-key", server, "--keys", stranger.path, "--json")
    # Slow enough for the stranger, too, to be there before the last frame.
    run = start(
        "run", "--camera", "sim:count=30,rate=5", "--engine", tiny.path, "--publish", endpoint, "--keys", station.path,
        "--threads", 1,
    )  # fmt: skip
    _, run_errors = run.communicate(timeout=LIMIT_S)
    out, friend_errors = friend.communicate(timeout=LIMIT_S)
    other.send_signal(signal.SIGINT)
    other_out, other_errors = other.communicate(timeout=LIMIT_S)
    assert run.returncode == friend.returncode == other.returncode == 0, run_errors + friend_errors + other_errors
    assert [json.loads(line)["seq"] for line in out.splitlines()] == list(range(1, 31))
    assert other_out == ""
    assert f"edge-keys allow {stranger_key.text}" in other_errors
    assert stranger_key.text in run_errors
    assert "Traceback" not in run_errors + friend_errors + other_errors
    for folder in (station, panel, stranger):
        secret = folder.pair(Kind.CONNECT).secret.hex()
        assert secret not in run_errors + friend_errors + other_errors


def run(tiny: TinyBundle, *arguments: object) -> int:
    return edge_run(["--camera", "sim:count=2", "--engine", str(tiny.path), "--threads", "1", *map(str, arguments)])


def test_beyond_loopback_needs_keys_or_insecure(
    tiny: TinyBundle, station: KeyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny, "--publish", "tcp://0.0.0.0:*") == 5
    error = capsys.readouterr().err
    assert "without keys anybody there may listen" in error
    assert "--insecure" in error
    assert run(tiny, "--publish", "tcp://0.0.0.0:*", "--keys", station.path, "--insecure") == 2
    station.make("second", Kind.CONNECT)
    assert run(tiny, "--keys", station.path) == 11
    assert "several key pairs" in capsys.readouterr().err
    (station.path / "station.secret").chmod(0o644)
    assert run(tiny, "--keys", station.path, "--server-key", "station") == 11
    assert "others may read or write" in capsys.readouterr().err


def test_only_a_signed_bundle_runs_where_that_is_required(
    tiny: TinyBundle, station: KeyFolder, tmp_path: Path, short_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "redi.plan"
    shutil.copyfile(tiny.path, plan)
    bundle = dataclasses.replace(tiny, path=plan)
    required = ("--publish", f"ipc://{short_folder}/e", "--require-signed", "--keys", station.path)
    assert run(bundle, *required) == 3
    assert "not signed" in capsys.readouterr().err
    key = station.make("release", Kind.SIGN)
    sign_bundle(plan, station.pair(Kind.SIGN))
    assert run(bundle, *required) == 3
    assert "not allowed here" in capsys.readouterr().err
    station.allow(key)
    assert run(bundle, *required) == 0
    assert f"signed by release, {key.text}" in capsys.readouterr().err


def test_a_client_that_forgets_the_stations_key_is_told(panel: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_watch(["--keys", str(panel.path)]) == 2
    assert "--server-key" in capsys.readouterr().err
    assert edge_watch(["--server-key", str(panel.path / "panel.secret"), "--keys", str(panel.path)]) == 11
    assert "secret key" in capsys.readouterr().err
