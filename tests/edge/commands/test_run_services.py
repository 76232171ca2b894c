"""edge-run with all that surrounds the stations: health, metrics, systemd, archive, previews."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.tiny_bundle import TinyBundle

LIMIT_S = 60.0
THREADS = {
    "outlet", "control", "archive", "preview",
    *(f"{camera} {thread}" for camera in ("left", "right") for thread in ("capture", "inspect", "publish", "journal")),
}  # fmt: skip


def fetch(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_station_tells_how_it_is(tiny: TinyBundle, tmp_path: Path) -> None:
    port = free_port()
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    notified.settimeout(LIMIT_S)
    words = [
        "--camera", "left=sim:rate=20", "--camera", "right=sim:rate=20", "--engine", tiny.path, "--threads", 1,
        "--publish", f"ipc://{tmp_path}/events", "--preview", "--archive", tmp_path / "archive",
        "--archive-keep", "all", "--health", f"127.0.0.1:{port}",
    ]  # fmt: skip
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
    environment.pop("WATCHDOG_PID", None)
    code = "import sys; from edge.commands.run import main; sys.exit(main())"
    station = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment)
    try:
        told = b""
        while b"READY=1" not in told:
            told = notified.recv(4096)
        while b"WATCHDOG=1" not in told:
            told = notified.recv(4096)
        archived = re.compile(r'redi_archived_images_total\{camera="(?:left|right)"\} ([0-9.]+)')
        page, limit = "", time.monotonic() + LIMIT_S
        while time.monotonic() < limit:
            page = fetch(f"http://127.0.0.1:{port}/metrics")
            if len(found := archived.findall(page)) == 2 and all(float(count) > 0 for count in found):
                break
            threading.Event().wait(0.1)
        else:
            pytest.fail(page)
        assert set(re.findall(r'redi_thread_stalled\{thread="([^"]+)"\} 0.0', page)) == THREADS
        health = json.loads(fetch(f"http://127.0.0.1:{port}/health"))
        assert health["status"] == "ok"
        assert {name: camera["state"] for name, camera in health["cameras"].items()} == {
            "left": "running",
            "right": "running",
        }
        station.send_signal(signal.SIGTERM)
        while b"STOPPING=1" not in told:
            told = notified.recv(4096)
        assert station.wait(LIMIT_S) == 0
    finally:
        station.kill()
        station.wait()
        notified.close()
    assert len(list((tmp_path / "archive" / "left").rglob("*.png"))) > 0
