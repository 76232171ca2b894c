from __future__ import annotations

import itertools
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import JournalError, PublishError
from edge.events.client import ControlClient
from edge.events.codec import EventMessage, StatusMessage, encode_event
from edge.events.control import Control, control_endpoint
from edge.events.cursor import Cursor, FileCursor, SqliteCursor
from edge.events.durable import DurableSubscriber
from edge.events.follow import Follower, Gap, cursor_of
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.requests import UNKNOWN_JOURNAL, Lost, Replayed, RequestError, Statuses, StatusRequest
from edge.events.schema import Event, Status
from edge.events.security import ClientKeys, ServerKeys
from edge.keys import KeyFolder, Kind, generate
from tests.edge.events.killed import Killer

MakeEvent = Callable[..., Event]
LIMIT_S = 30.0


class Station:
    """One run of a station on a folder and an endpoint."""

    def __init__(
        self, folder: Path | None, endpoint: str, make_event: MakeEvent, keys: ServerKeys | None = None
    ) -> None:
        self.journal = None if folder is None else Journal(folder)
        self.outlet = Outlet(endpoint, heartbeat_s=0.1, keys=keys)
        self.publisher = Publisher(self.outlet, camera="cam0", journal=self.journal)
        self.control = Control(control_endpoint(endpoint), context=self.outlet.context, keys=keys)
        serve_events(self.control, [self.publisher])
        self.control.start()
        self.publisher.status("running", {})
        self._make_event = make_event

    def publish(self, count: int, *, send: bool = True) -> None:
        publisher = self.publisher
        ids = {"boot_id": publisher.boot_id, "journal_id": publisher.journal_id, "camera": publisher.camera}
        events = [(self._make_event(**ids, seq=publisher.next_seq()), b"mask") for _ in range(count)]
        if not send:
            # Published, and lost on its way.
            publisher.outlet, outlet = _Nowhere(), publisher.outlet  # type: ignore[assignment]
            publisher.publish_all(events)
            publisher.outlet = outlet
        else:
            publisher.publish_all(events)

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self.publisher.close()
        self.outlet.close()
        if self.journal is not None:
            self.journal.close()


class _Nowhere:
    def send(self, parts: object) -> None:
        pass


def take(subscriber: DurableSubscriber, count: int, *, ack: bool = True) -> list[int | tuple[int, int | None]]:
    """Return the next events' numbers, and gaps as pairs."""
    taken: list[int | tuple[int, int | None]] = []
    until = time.monotonic() + LIMIT_S
    while len(taken) < count:
        message = subscriber.receive(max(0.0, until - time.monotonic()))
        late = message is None or time.monotonic() > until
        # Statuses alone, however many, are not enough.
        assert not late, f"nothing more after {taken}; {subscriber.trouble}"
        if message is None or isinstance(message, StatusMessage):
            continue
        taken.append((message.first, message.last) if isinstance(message, Gap) else message.event.seq)
        if ack:
            subscriber.ack(message)
    return taken


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/events"


def test_who_joins_late_gets_all_and_goes_on_live(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    with Station(tmp_path / "j", endpoint, make_event) as station:
        station.publish(2500)
        with DurableSubscriber(endpoint) as subscriber:
            assert take(subscriber, 2500) == list(range(1, 2501))
            assert not subscriber.behind
            station.publish(3)
            assert take(subscriber, 3) == [2501, 2502, 2503]


def test_what_is_lost_on_the_way_is_asked_for(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    with Station(tmp_path / "j", endpoint, make_event) as station, DurableSubscriber(endpoint) as subscriber:
        while not station.outlet.wait_for_subscriber(0.05):
            # After a handshake that took too long, ZeroMQ subscribes again only in a receiving thread.
            subscriber.receive(0.05)
        station.publish(3)
        station.publish(4, send=False)
        station.publish(1)
        assert take(subscriber, 8) == list(range(1, 9))
        # The tail, which only the heartbeat tells of.
        station.publish(2, send=False)
        assert take(subscriber, 2) == [9, 10]


def test_stations_and_subscribers_come_and_go(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    cursor = tmp_path / "cursor"
    with DurableSubscriber(endpoint, cursor=cursor) as subscriber:
        with Station(tmp_path / "j", endpoint, make_event) as station:
            station.publish(5)
            assert take(subscriber, 5) == [1, 2, 3, 4, 5]
        with Station(tmp_path / "j", endpoint, make_event) as station:
            station.publish(5)
            assert take(subscriber, 3) == [6, 7, 8]
            assert take(subscriber, 1, ack=False) == [9]
    with Station(tmp_path / "j", endpoint, make_event) as station:
        station.publish(1)
    with (
        Station(tmp_path / "j", endpoint, make_event) as station,
        DurableSubscriber(endpoint, cursor=cursor) as subscriber,
    ):
        assert take(subscriber, 3) == [9, 10, 11]


def test_from_now_on(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    cursor = tmp_path / "cursor"
    with Station(tmp_path / "j", endpoint, make_event) as station:
        station.publish(5)
        with DurableSubscriber(endpoint) as earlier:
            # What is still on its way would be from now on too.
            assert take(earlier, 5) == [1, 2, 3, 4, 5]
        with DurableSubscriber(endpoint, cursor=cursor, start="now") as subscriber:
            assert isinstance(subscriber.receive(LIMIT_S), StatusMessage)
        station.publish(2)
        # "Now" was when it first started.
        with DurableSubscriber(endpoint, cursor=cursor, start="now") as subscriber:
            assert take(subscriber, 2) == [6, 7]


def test_a_journal_that_is_replaced(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    with DurableSubscriber(endpoint) as subscriber:
        for folder in ("one", "two"):
            with Station(tmp_path / folder, endpoint, make_event) as station:
                station.publish(3)
                assert take(subscriber, 3 if folder == "one" else 4)[-3:] == [1, 2, 3]
        with Station(None, endpoint, make_event) as station:
            assert take(subscriber, 1) == [(4, None)]
            station.publish(2)
            station.publish(2, send=False)
            assert take(subscriber, 3) == [1, 2, (3, 4)]


def test_what_was_pruned_is_a_gap(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    cursor = tmp_path / "cursor"
    with Station(tmp_path / "j", endpoint, make_event) as station:
        assert station.journal is not None
        station.publish(2)
        with DurableSubscriber(endpoint, cursor=cursor) as subscriber:
            assert take(subscriber, 2) == [1, 2]
        station.publish(40)
        store = station.journal._files.store
        assert store is not None
        store.prune(0, 0, step=10)
        with DurableSubscriber(endpoint, cursor=cursor) as subscriber:
            assert take(subscriber, 3) == [(3, 10), 11, 12]
        with DurableSubscriber(endpoint) as subscriber:
            # Nobody missed what was gone before the first start.
            assert take(subscriber, 2) == [11, 12]


def test_with_keys(tmp_path: Path, free_port: int, make_event: MakeEvent) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.make("station", Kind.CONNECT)
    server = ServerKeys(folder.pair(Kind.CONNECT), folder)
    pair = generate(Kind.CONNECT, "client")
    folder.allow(pair.public)
    endpoint = f"tcp://127.0.0.1:{free_port}"
    with Station(tmp_path / "j", endpoint, make_event, keys=server) as station:
        station.publish(300)
        with DurableSubscriber(endpoint, keys=ClientKeys(pair, server.pair.public)) as subscriber:
            assert take(subscriber, 300) == list(range(1, 301))
        with ControlClient(control_endpoint(endpoint)) as stranger, pytest.raises(PublishError, match="no station"):
            stranger.call("status", StatusRequest(), Statuses, 0.5)


def test_several_cameras_share_an_outlet(tmp_path: Path, endpoint: str, make_event: MakeEvent) -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(tmp_path / name)) for name in seen]
        outlet = stack.enter_context(Outlet(endpoint, heartbeat_s=0.1))
        publishers = [stack.enter_context(Publisher(outlet, camera=j.folder.name, journal=j)) for j in journals]
        control = stack.enter_context(Control(control_endpoint(endpoint), context=outlet.context))
        serve_events(control, publishers)
        control.start()
        for publisher in publishers:
            publisher.status("running", {})
            ids = {"boot_id": publisher.boot_id, "journal_id": publisher.journal_id, "camera": publisher.camera}
            publisher.publish_all([(make_event(**ids, seq=publisher.next_seq()), b"") for _ in range(300)])
        subscriber = stack.enter_context(DurableSubscriber(endpoint, cursor=tmp_path / "cursor"))
        while sum(map(len, seen.values())) < 600:
            message = subscriber.receive(LIMIT_S)
            assert message is not None
            if isinstance(message, EventMessage):
                seen[message.event.camera].append(message.event.seq)
                subscriber.ack(message)
    assert seen == {"a": list(range(1, 301)), "b": list(range(1, 301))}
    file = FileCursor(tmp_path / "cursor")
    assert file.load() == {j.folder.name: Cursor(j.journal_id, 300) for j in journals}
    file.close()


def test_a_cursor_file_has_one_user_and_no_other_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    first = FileCursor(path)
    first.save({"cam0": Cursor("j", 5)})
    with pytest.raises(JournalError, match="in use"):
        FileCursor(path)
    first.close()
    again = FileCursor(path)
    assert again.load() == {"cam0": Cursor("j", 5)}
    again.close()
    precious = tmp_path / "events.jsonl"
    precious.write_text('{"seq": 1}\n')
    with pytest.raises(JournalError, match="no cursor file"):
        FileCursor(precious)
    assert precious.read_text() == '{"seq": 1}\n'
    with pytest.raises(JournalError, match="cannot be kept"):
        FileCursor(tmp_path / "missing" / "cursor")


def test_a_cursor_in_the_consumers_own_transaction() -> None:
    connection = sqlite3.connect(":memory:")
    cursor = SqliteCursor(connection)
    with connection:
        cursor.save({"cam0": Cursor("j", 5)})
    cursor.save({"cam0": Cursor("j", 6)})
    connection.rollback()
    assert cursor.load() == {"cam0": Cursor("j", 5)}


# The order of things, without sockets


class Oracle:
    """A station in memory: journals one after the other, some of whose events are lost or pruned."""

    def __init__(self, make_event: MakeEvent) -> None:
        self._make_event = make_event
        self.journals: list[str] = []
        self.last: dict[str, int] = {}
        self.gone: dict[str, set[int]] = {}

    def begin(self) -> None:
        self.journals.append(f"journal {len(self.journals)}")
        self.last[self.journals[-1]] = 0
        self.gone[self.journals[-1]] = set()

    def event(self, journal: str, seq: int) -> EventMessage:
        return EventMessage(self._make_event(journal_id=journal, boot_id="boot", seq=seq), b"")

    def status(self) -> StatusMessage:
        journal = self.journals[-1]
        return StatusMessage(Status("boot", "cam0", "running", 0, self.last[journal], journal_id=journal, journal="ok"))

    def answer(self, journal: str, after: int, limit: int) -> Replayed:
        journal = journal or self.journals[0]
        last, gone = self.last[journal], self.gone[journal]
        through = max(after, min(last, after + limit))
        seqs = range(after + 1, through + 1)
        following = self.journals[self.journals.index(journal) + 1 :]
        return Replayed(
            journal_id=journal,
            first_seq=min((n for n in range(1, last + 1) if n not in gone), default=0),
            last_seq=last,
            through_seq=through,
            events=[tuple(encode_event(self.event(journal, n).event, b"")[1:]) for n in seqs if n not in gone],  # type: ignore[misc]
            lost=[Lost(n, n, "lost") for n in seqs if n in gone],
            next_journal_id=following[0] if following and through == last else "",
        )


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_happens_each_event_comes_once_and_in_order(make_event: MakeEvent, seed: int) -> None:
    chance = random.Random(seed)
    oracle = Oracle(make_event)
    oracle.begin()
    follower = Follower("cam0", None, from_oldest=True)
    out: list[Any] = []
    for _ in range(chance.randint(1, 60)):
        journal = oracle.journals[-1]
        match chance.randint(0, 6):
            case 0 | 1 | 2:
                oracle.last[journal] += 1
                if chance.random() < 0.7:
                    follower.see_event(oracle.event(journal, oracle.last[journal]))
                elif chance.random() < 0.3:
                    oracle.gone[journal].add(oracle.last[journal])
            case 3:
                follower.see_status(oracle.status())
            case 4 if follower.behind:
                asked = follower.request()
                follower.take(oracle.answer(asked.journal_id, asked.after_seq, chance.randint(1, 5)))
            case 5 if chance.random() < 0.2:
                oracle.begin()
            case 6 if follower.position is not None and chance.random() < 0.3:
                # Killed and started again with its cursor.
                out.extend(follower.ready)
                cursor = cursor_of(out[-1]) if out else None
                follower = Follower("cam0", cursor, from_oldest=True)
    follower.see_status(oracle.status())
    for _ in range(300):
        if not follower.behind:
            break
        asked = follower.request()
        follower.take(oracle.answer(asked.journal_id, asked.after_seq, 5))
    assert not follower.behind
    out.extend(follower.ready)
    seen: list[tuple[str, int]] = []
    for message in out:
        if isinstance(message, Gap):
            assert message.last is not None
            seen += [(message.journal_id, n) for n in range(message.first, message.last + 1)]
            assert set(range(message.first, message.last + 1)) <= oracle.gone[message.journal_id]
        else:
            seen.append((message.event.journal_id, message.event.seq))
    everything = [(journal, n) for journal in oracle.journals for n in range(1, oracle.last[journal] + 1)]
    # What was gone before there was a first event to begin with is not missed.
    start = everything.index(seen[0]) if seen else len(everything)
    assert seen == everything[start:]
    assert all(n in oracle.gone[journal] for journal, n in everything[:start])


def test_a_journal_that_nobody_has_any_more(make_event: MakeEvent) -> None:
    follower = Follower("cam0", Cursor("gone", 7), from_oldest=True)
    assert not follower.refuse(RequestError(UNKNOWN_JOURNAL, ""))
    message = EventMessage(make_event(journal_id="new", seq=3), b"")
    follower.see_event(message)
    assert follower.behind
    assert not follower.refuse(RequestError("unavailable", ""))
    assert follower.refuse(RequestError(UNKNOWN_JOURNAL, ""))
    (gap,) = follower.ready
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.cursor) == (8, None, Cursor("new", 0))
    assert follower.request().after_seq == 0


def test_replayed_messages_that_cannot_be_read_are_a_gap(make_event: MakeEvent) -> None:
    follower = Follower("cam0", Cursor("j", 0), from_oldest=True)
    good = encode_event(make_event(journal_id="j", seq=3), b"")
    other = encode_event(make_event(journal_id="j", seq=2, camera="cam1"), b"")
    events = [(b"\xc1", b""), (other[1], b""), (good[1], b""), (good[1], b"")]
    lost = [Lost(-5, 10**9, "nonsense"), Lost(9, 2, "backwards")]
    assert follower.take(Replayed("j", 1, 4, 4, events))
    assert follower.damaged == 2
    assert [(type(each), cursor_of(each).seq) for each in follower.ready] == [(Gap, 2), (EventMessage, 3), (Gap, 4)]
    follower.take(Replayed("j", 1, 4, 4, events, lost))
    assert follower.position == Cursor("j", 10**9)


# Processes that are killed


@pytest.fixture
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


def test_a_station_killed_52_times_gives_each_part_one_verdict(
    killer: Killer, quick_folder: Path, free_port: int
) -> None:
    chance = random.Random(1)
    endpoint = f"tcp://127.0.0.1:{free_port}"
    folder = quick_folder / "journal"
    messages: list[EventMessage | Gap] = []
    ended = threading.Event()

    def subscribe() -> None:
        with DurableSubscriber(endpoint, cursor=quick_folder / "cursor") as subscriber:
            while not ended.is_set():
                message = subscriber.receive(0.2)
                if isinstance(message, StatusMessage):
                    if message.status.state == "stopped" and not subscriber.behind:
                        return
                elif message is not None:
                    messages.append(message)
                    subscriber.ack(message)

    thread = threading.Thread(target=subscribe)
    thread.start()
    try:
        for _ in range(52):
            steps = 0 if chance.random() < 0.2 else chance.randint(1, 30)
            killer.run(
                role="station", folder=str(folder), endpoint=endpoint, steps=steps, then_s=chance.uniform(0, 0.008)
            )
        with Journal(folder) as journal:
            goal = journal.last_seq + len(journal.pending()) + 30
        killer.begin(role="station", folder=str(folder), endpoint=endpoint, steps=10**9, parts=goal)
        thread.join(LIMIT_S * 3)
        assert not thread.is_alive()
    finally:
        ended.set()
        thread.join()
    events = [message.event for message in messages if isinstance(message, EventMessage)]
    assert len(events) == len(messages)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len({event.boot_id for event in events}) > 20
    parts = [event.part_id for event in events]
    assert len(set(parts)) == len(parts)
    assert set(parts) == {f"part {number}" for number in range(1, len(parts) + 1)}
    assert any(event.verdict.value == "fault" for event in events)


@pytest.mark.parametrize("exact", [True, False], ids=["exactly-once", "at-least-once"])
def test_a_consumer_killed_again_and_again_misses_nothing(
    killer: Killer, quick_folder: Path, endpoint: str, make_event: MakeEvent, exact: bool
) -> None:
    chance = random.Random(2)
    count = 400
    table = quick_folder / "results.db"
    job = {"role": "consumer", "table": str(table), "endpoint": endpoint, "exact": exact, "last": count}
    with Station(quick_folder / "j", endpoint, make_event) as station:
        station.publish(100)

        def line() -> None:
            for _ in range(100, count, 5):
                station.publish(5)
                threading.Event().wait(0.003)

        thread = threading.Thread(target=line)
        thread.start()
        for _ in range(15):
            steps = 0 if chance.random() < 0.1 else chance.randint(1, 20)
            killer.run(**job, steps=steps, then_s=chance.uniform(0, 0.003))
        killer.run(**job, steps=None)
        thread.join()
    with sqlite3.connect(table) as connection:
        seqs = [row[0] for row in connection.execute("SELECT seq FROM results ORDER BY rowid")]
    connection.close()
    if exact:
        assert seqs == list(range(1, count + 1))
    else:
        assert set(seqs) == set(range(1, count + 1))
        # Only what was not acknowledged came again, in its order.
        assert all(after == before + 1 or after <= before for before, after in itertools.pairwise(seqs))
        assert len(seqs) <= count + 15


def test_another_file_wakes_the_wait(endpoint: str) -> None:
    reader, writer = os.pipe()
    try:
        with DurableSubscriber(endpoint) as subscriber:
            subscriber.wake_on(reader)
            timer = threading.Timer(0.05, os.write, (writer, b"x"))
            timer.start()
            # Longer than the test may take.
            assert subscriber.receive(600.0) is None
            timer.join()
    finally:
        os.close(reader)
        os.close(writer)
