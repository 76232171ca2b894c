"""What stands around a station in these tests: who triggers parts, who notes every event, and `edge-run` itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edge.errors import PublishError
from edge.events.client import ControlClient
from edge.events.codec import EventMessage, StatusMessage
from edge.events.control import control_endpoint
from edge.events.durable import DurableSubscriber
from edge.events.follow import Gap
from edge.events.journal import Journal
from edge.events.requests import RequestError, Trigger, Triggered
from edge.events.schema import Event
from edge.events.security import ClientKeys

LIMIT_S = 40.0
# Short: an answer that does not come within it went down with the station.
_ANSWER_S = 0.5

_Worker = TypeVar("_Worker", bound="Worker")


class Worker:
    """A thread that is told to end, and whose error fails the test."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def work(self) -> None:
        raise NotImplementedError

    def _guarded(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001  `__exit__` raises it
            self._error = error

    def __enter__(self: _Worker) -> _Worker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if self._error is not None and kind is None:
            raise self._error


class Plc(Worker):
    """Asks for one part after the other, each again and again until it is accepted.

    Attributes:
        accepted: the encoder's count of each part that the station has promised a verdict.
    """

    def __init__(
        self, endpoint: str, *, first: int = 1, step: int = 1, pause_s: float = 0.0, keys: ClientKeys | None = None
    ) -> None:
        super().__init__()
        self.accepted: dict[str, int] = {}
        self._endpoint, self._keys = control_endpoint(endpoint), keys
        self._next, self._step, self._pause_s = first, step, pause_s

    def work(self) -> None:
        with ControlClient(self._endpoint, keys=self._keys) as client:
            # A part that was asked for is asked for until the end: it may have been accepted.
            while not self.ended.wait(self._pause_s):
                self.trigger(client)

    def trigger(self, client: ControlClient) -> Triggered:
        number, self._next = self._next, self._next + self._step
        limit = time.monotonic() + LIMIT_S
        while True:
            with suppress(PublishError, RequestError):
                part = Trigger(f"part {number}", encoder=number)
                found = client.call("trigger", part, Triggered, timeout_s=_ANSWER_S)
                self.accepted[found.part_id] = number
                return found
            assert time.monotonic() < limit, f"part {number} is not accepted"

    def ask(self, count: int) -> dict[str, int]:
        """Ask for so many parts in the caller's thread; return those alone."""
        first = self._next
        with ControlClient(self._endpoint, keys=self._keys) as client:
            for _ in range(count):
                self.trigger(client)
        return {f"part {number}": number for number in range(first, self._next, self._step)}


class Log(Worker):
    """A durable subscriber that notes every event, and stops and starts again after every `restart` of them."""

    def __init__(
        self, endpoint: str, cursor: Path | None, *, restart: int | None = None, keys: ClientKeys | None = None
    ) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.gaps: list[Gap] = []
        self.status: StatusMessage | None = None
        self.starts = 0
        self._arrived = threading.Condition()
        self._endpoint, self._cursor, self._restart, self._keys = endpoint, cursor, restart, keys

    def work(self) -> None:
        while not self.ended.is_set():
            self.starts += 1
            with DurableSubscriber(self._endpoint, cursor=self._cursor, keys=self._keys) as subscriber:
                self._read(subscriber)

    def _read(self, subscriber: DurableSubscriber) -> None:
        count = 0
        while not self.ended.is_set() and count != self._restart:
            message = subscriber.receive(0.2)
            with self._arrived:
                if isinstance(message, StatusMessage):
                    self.status = message
                elif isinstance(message, EventMessage):
                    self.events.append(message.event)
                    count += 1
                elif message is not None:
                    self.gaps.append(message)
                self._arrived.notify_all()
            if isinstance(message, (EventMessage, Gap)):
                subscriber.ack(message)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition on what was noted holds."""
        with self._arrived:
            found = self._arrived.wait_for(condition, LIMIT_S)
        assert found, f"{what} did not come; {len(self.events)} events, error {self._error!r}"

    def wait_for(self, parts: Collection[str]) -> dict[str, Event]:
        """Wait until these parts have their verdict; return all parts' events, of which each has one."""
        self.wait(lambda: {event.part_id for event in self.events} >= set(parts), "a part's verdict")
        by_part = {event.part_id: event for event in self.events if event.part_id is not None}
        assert len(by_part) == len(self.events), "a part has two verdicts"
        return by_part

    def check(self) -> None:
        """Check that nothing is missing, doubled or out of order."""
        assert self.gaps == []
        assert len({event.journal_id for event in self.events}) == 1
        assert [event.seq for event in self.events] == list(range(1, len(self.events) + 1))


def kept(folder: Path) -> dict[int, bytes]:
    """Return what a station that has ended kept: the events of its one journal, by number, encoded."""
    found: dict[int, bytes] = {}
    with Journal(folder) as journal:
        while len(found) < journal.last_seq:
            page = journal.read(journal.journal_id, len(found), limit=1000, max_bytes=1 << 30)
            assert page is not None
            assert not page.lost
            found |= {row.seq: row.header for row in page.rows}
    return found


class EdgeRun:
    """A real `edge-run`, started as its console script does; what it says is kept."""

    def __init__(self, *words: object, **options: Any) -> None:
        given = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        self.said = ""
        self._spoke = threading.Condition()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from edge.commands.run import main; sys.exit(main())",
                *map(str, words),
                *given,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "500"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._spoke:
                self.said += line
                self._spoke.notify_all()

    def wait_said(self, text: str, times: int = 1) -> None:
        with self._spoke:
            assert self._spoke.wait_for(lambda: self.said.count(text) >= times, LIMIT_S), self.said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order; it must not have complained of itself."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(LIMIT_S) == 0, self.said
        self._reader.join(LIMIT_S)
        assert "Traceback" not in self.said
        assert "internal error" not in self.said

    def __enter__(self) -> EdgeRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join(LIMIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
