"""edge-run keeps its events: restarts, kills, and what its arguments say."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge.commands.journal_arguments import byte_count
from edge.commands.run import main
from edge.events.codec import EventMessage, StatusMessage
from edge.events.durable import DurableSubscriber
from edge.events.journal import Journal
from tests.tiny_bundle import TinyBundle

LIMIT_S = 60.0


@pytest.fixture
def endpoint() -> str:
    for port in random.Random().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"
    pytest.fail("no free port")


def arguments(tiny: TinyBundle, endpoint: str, **options: Any) -> list[str]:
    options = {"camera": "sim:count=5", "engine": tiny.path, "publish": endpoint, "threads": 1, **options}
    return [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def receive(subscriber: DurableSubscriber, count: int) -> list[EventMessage]:
    events: list[EventMessage] = []
    while len(events) < count:
        message = subscriber.receive(LIMIT_S)
        assert message is not None, f"nothing more came after {len(events)} events"
        if not isinstance(message, StatusMessage):
            assert isinstance(message, EventMessage), message
            events.append(message)
    return events


def test_events_of_one_run_after_the_other_are_kept(
    tiny: TinyBundle, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(arguments(tiny, endpoint, journal=tmp_path)) == 0
    assert f"events are kept in {tmp_path}/cam0" in capsys.readouterr().err
    assert (tmp_path / "cam0").stat().st_mode & 0o777 == 0o700
    with Journal(tmp_path / "cam0") as journal:
        assert (journal.first_seq, journal.last_seq) == (1, 10)
        # Taken: the station says so before it binds or loads anything.
        assert main(arguments(tiny, endpoint, journal=tmp_path)) == 12
    err = capsys.readouterr().err
    assert "in use by another station" in err
    assert "next: " in err


def test_without_a_journal_nothing_is_written(tiny: TinyBundle, endpoint: str, tmp_path: Path) -> None:
    state = Path(os.environ["XDG_STATE_HOME"])
    assert main(arguments(tiny, endpoint, journal="none")) == 0
    assert list(state.iterdir()) == []
    assert main(arguments(tiny, endpoint)) == 0
    assert (state / "redi-edge" / "cam0" / "events.db").exists()


def test_sizes_are_read() -> None:
    assert [byte_count(text) for text in ("1M", "500M", "4G", "2GiB", "1048576")] == [
        1 << 20, 500 << 20, 4 << 30, 2 << 30, 1 << 20,
    ]  # fmt: skip
    for bad in ("", "1", "1023k", "-5M", "1.5G", "M", "4X", "9" * 40):
        with pytest.raises(Exception, match="is not a size"):
            byte_count(bad)


@pytest.mark.slow
def test_a_station_that_is_killed_loses_no_event(tiny: TinyBundle, endpoint: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    words = arguments(tiny, endpoint, camera="sim:", journal=tmp_path)
    code = "import sys; from edge.commands.run import main; sys.exit(main())"
    events: list[EventMessage] = []
    with DurableSubscriber(endpoint, cursor=tmp_path / "cursor") as subscriber:
        for _ in range(4):
            station = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
            try:
                earlier = {message.event.boot_id for message in events}
                events += receive(subscriber, chance.randint(5, 60))
                # What its predecessors left may be as many: it has its own before it is killed.
                while events[-1].event.boot_id in earlier:
                    events += receive(subscriber, 1)
                threading.Event().wait(chance.uniform(0, 0.02))
            finally:
                station.send_signal(signal.SIGKILL)
                station.wait()
        with Journal(tmp_path / "cam0") as journal:
            last = journal.last_seq
        assert main(arguments(tiny, endpoint, journal=tmp_path)) == 0
        station = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
        try:
            events += receive(subscriber, last + 6 - len(events))
        finally:
            station.kill()
            station.wait()
    assert [message.event.seq for message in events] == list(range(1, last + 7))
    assert len({message.event.boot_id for message in events}) == 6
