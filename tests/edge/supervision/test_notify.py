from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.supervision.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The end of systemd, and what it would set as NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@redi-test-{os.getpid()}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name[0] == "@" else name)
        listening.settimeout(10.0)
        yield listening, name


def received(listening: socket.socket) -> list[str]:
    return listening.recv(65536).decode().split("\n")


def test_the_protocol(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    with Notifier({"NOTIFY_SOCKET": name}) as notifier:
        assert notifier.active
        assert notifier.watchdog_period_s is None
        assert notifier.ready("cam0 running")
        assert received(listening) == ["READY=1", "STATUS=cam0 running"]
        assert notifier.status("two\nREADY=1\nlines " + "x" * 10_000)
        (status,) = received(listening)
        assert status.startswith("STATUS=two READY=1 lines xxx")
        assert len(status) < 500
        assert notifier.watchdog()
        assert received(listening) == ["WATCHDOG=1"]
        assert notifier.stopping()
        assert received(listening)[0] == "STOPPING=1"


def test_all_is_well_only_while_nothing_is_stalled(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
    with Notifier(environment) as notifier:
        assert notifier.watchdog_period_s == 2.0
        notifier.ready("running")
        received(listening)
        notifier.tick([])
        assert received(listening) == ["WATCHDOG=1"]
        notifier.tick(["capture"])
        notifier.tick(["capture"])
        notifier.tick(["capture", "publish"])
        notifier.tick([])
        assert received(listening) == ["STATUS=stalled: capture"]
        assert received(listening) == ["STATUS=stalled: capture, publish"]
        assert received(listening) == ["STATUS=running"]
        assert received(listening) == ["WATCHDOG=1"]
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.recv(100)


@pytest.mark.parametrize(
    "changes", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": "²"}]
)
def test_a_watchdog_that_is_none_or_anothers(tmp_path: Path, changes: dict[str, str]) -> None:
    with Notifier({"NOTIFY_SOCKET": str(tmp_path / "x"), "WATCHDOG_USEC": "4000000", **changes}) as notifier:
        assert notifier.watchdog_period_s is None


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_systemd_nothing_happens(environment: dict[str, str]) -> None:
    with Notifier({**environment, "WATCHDOG_USEC": "4000000"}) as notifier:
        assert not notifier.active
        assert notifier.watchdog_period_s is None
        assert not notifier.ready()
        notifier.tick([])
        notifier.tick(["capture"])


def test_a_manager_that_is_gone_or_reads_nothing_holds_nobody_up(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with Notifier({"NOTIFY_SOCKET": name}) as notifier:
        assert not notifier.ready()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(name)
            sent = [notifier.watchdog() for _ in range(10_000)]
        assert sent[0]
        assert not sent[-1]
    assert not notifier.watchdog()
