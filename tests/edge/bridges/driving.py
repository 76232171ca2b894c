"""A bridge that runs, in this process or as `edge-bridge`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.bridges.bridge import Bridge
from edge.bridges.settings import read_settings
from edge.bridges.side import StationAddress


def write_config(folder: Path, **keys: Any) -> Path:
    """Write a `bridge.toml` of one PLC."""
    keys = {"name": "plc1", "protocol": "modbus", "poll_ms": 2, "heartbeat_ms": 50, **keys}
    path = folder / "bridge.toml"
    path.write_text("[[plc]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    return path


@contextmanager
def running(folder: Path, events: str, control: str | None = None, **keys: Any) -> Iterator[Bridge]:
    """A bridge in this process; an error of its thread is raised at the end."""
    said: list[str] = []
    bridge = Bridge(
        read_settings(write_config(folder, **keys)),
        StationAddress(events, control),
        cursors=folder / "cursors",
        report=said.append,
    )
    errors: list[BaseException] = []

    def run() -> None:
        try:
            bridge.run()
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield bridge
    finally:
        bridge.stop()
        thread.join()
    for error in errors:
        raise error


class EdgeBridge:
    """A real `edge-bridge`, that is killed when it is closed."""

    def __init__(self, folder: Path, events: str, control: str | None = None, **keys: Any) -> None:
        config = write_config(folder, **keys)
        words = ["--config", str(config), "--events", events, "--cursors", str(folder / "cursors")]
        if control is not None:
            words += ["--control", control]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge.commands.bridge", *words], stderr=subprocess.DEVNULL
        )

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
