from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.errors import JournalError
from edge.events.backlog import JournalState, JournalUnavailableError, PartDoneError
from edge.events.issued import Issued, IssuedFile
from edge.events.journal import Journal
from edge.events.journal_files import journal_folder
from edge.events.page import Page
from edge.events.slotfile import SlotFile
from edge.events.store import Row, SavedClock, Store

ROOT = Path(__file__).parents[3]
FULL = sqlite3.OperationalError("database or disk is full")


def rows(first: int, count: int, size: int = 20, part_ids: list[str] | None = None) -> list[Row]:
    names: list[str | None] = [*(part_ids or []), *[None] * count]
    return [
        Row(seq, b"%d:" % seq + bytes(size), b"mask%d" % seq, names[seq - first]) for seq in range(first, first + count)
    ]


def read_all(journal: Journal, journal_id: str = "", limit: int = 7) -> tuple[dict[int, bytes], dict[int, str]]:
    """Page through a journal; return headers and reasons of loss by number."""
    events: dict[int, bytes] = {}
    lost: dict[int, str] = {}
    after = 0
    journal_id = journal_id or journal.journal_id
    while True:
        page = journal.read(journal_id, after, limit=limit, max_bytes=400)
        assert page is not None
        assert [row.seq for row in page.rows] == sorted(row.seq for row in page.rows)
        for row in page.rows:
            assert row.mask == b"mask%d" % row.seq
            events[row.seq] = row.header
        for first, last, reason in page.lost:
            lost.update(dict.fromkeys(range(first, last + 1), reason))
        assert sorted([*(row.seq for row in page.rows), *(n for n in lost if after < n)]) == list(
            range(after + 1, page.through_seq + 1)
        )
        if page.through_seq == after or page.through_seq >= page.last_seq:
            assert page.last_seq <= page.through_seq
            return events, lost
        after = page.through_seq


class Disk:
    """Says whether the disk takes anything."""

    broken = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Disk]]:
    break_store(monkeypatch)
    yield Disk
    Disk.broken = False


def break_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def breakable(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if Disk.broken:
                raise FULL
            return method(*arguments, **named)

        return call

    for name in ("__init__", "append", "add_parts", "add_journal"):
        monkeypatch.setattr(Store, name, breakable(getattr(Store, name)))


class AgainstAPlainList(RuleBasedStateMachine):
    """The journal against lists in memory, over crashes, closings, pruning and a full disk."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        break_store(self.patch)
        # Only what the rules do happens.
        self.patch.setattr("edge.events.upkeep._PERIOD_S", 3600.0)
        self.folders = tempfile.TemporaryDirectory()
        self.count = 0
        self.issued = 0
        self.saved: dict[int, bytes] = {}
        self.waiting: dict[int, bytes] = {}
        self.lost: set[int] = set()
        self.pruned = 0
        self.parts: dict[str, int | None] = {}
        self.unsaved_parts: set[str] = set()
        self.journal = self.open()
        self.journal_id = self.journal.journal_id

    def teardown(self) -> None:
        Disk.broken = False
        self.journal.close()
        self.folders.cleanup()
        self.patch.undo()

    def folder(self) -> Path:
        return Path(self.folders.name) / str(self.count)

    def open(self) -> Journal:
        return Journal(self.folder(), size_limit=10**9)

    @rule(count=st.integers(1, 12), size=st.sampled_from([0, 30, 5000]), complete=st.integers(0, 3))
    def append(self, count: int, size: int, complete: int) -> None:
        waiting = [part for part, seq in self.parts.items() if seq is None][: min(complete, count)]
        batch = rows(self.issued + 1, count, size, waiting)
        state = self.journal.append(batch)
        assert state is (JournalState.DEGRADED if Disk.broken or self.waiting else JournalState.OK)
        target = self.saved if state is JournalState.OK else self.waiting
        for row in batch:
            target[row.seq] = row.header
            if row.part_id:
                self.parts[row.part_id] = row.seq
        self.issued += count

    @precondition(lambda self: any(seq is not None for seq in self.parts.values()))
    @rule(position=st.integers(0, 100))
    def give_a_second_verdict(self, position: int) -> None:
        done = [part for part, seq in self.parts.items() if seq is not None]
        with pytest.raises(PartDoneError):
            self.journal.append(rows(self.issued + 1, 1, part_ids=[done[position % len(done)]]))

    @rule(number=st.integers(0, 30))
    def trigger(self, number: int) -> None:
        part_id = f"part {number}"
        answer = self.journal.accept(part_id, encoder=number, triggered_at_ns=number)
        assert answer.new == (part_id not in self.parts)
        assert answer.part.seq == self.parts.get(part_id)
        self.parts.setdefault(part_id, None)

    @rule()
    def fill_the_disk(self) -> None:
        Disk.broken = True

    @rule()
    def free_the_disk(self) -> None:
        Disk.broken = False
        self.journal._recover()
        assert self.journal.state is JournalState.OK
        self.saved.update(self.waiting)
        self.waiting.clear()

    @rule(torn=st.binary(max_size=5000))
    def crash(self, torn: bytes) -> None:
        """Go on with a copy of the files, as they are now, and with what a write that was cut short left behind."""
        before = self.folder()
        self.count += 1
        shutil.copytree(before, self.folder())
        wal = self.folder() / "events.db-wal"
        if wal.exists():
            with wal.open("ab") as file:
                file.write(torn)
        old = self.journal
        Disk.broken = False
        self.journal = self.open()
        old.close()
        self.lost.update(self.waiting)
        self.waiting.clear()

    @precondition(lambda self: not Disk.broken)
    @rule()
    def restart(self) -> None:
        self.free_the_disk()
        self.journal.close()
        self.journal = self.open()

    @precondition(lambda self: not Disk.broken and not self.waiting and self.saved)
    @rule()
    def prune(self) -> None:
        store = self.journal._files.store
        assert store is not None
        store.prune(0, 0, step=3)
        self.journal._parts.forget_before(store.first_seq(self.journal_id))
        keys = sorted(self.saved)[:3]
        for seq in keys if len(self.saved) > 3 else keys[:-1]:
            del self.saved[seq]
            self.pruned = seq
        first = min(self.saved)
        self.parts = {part: seq for part, seq in self.parts.items() if seq is None or seq >= first}
        self.lost = {seq for seq in self.lost if seq > self.pruned}

    @invariant()
    def it_holds_what_the_lists_hold(self) -> None:
        journal = self.journal
        assert (journal.journal_id, journal.last_seq) == (self.journal_id, self.issued)
        events, lost = read_all(journal)
        assert events == {**self.saved, **self.waiting}
        assert set(lost) == set(range(1, self.issued + 1)) - set(events)
        assert {seq for seq in self.lost if seq > self.pruned} <= {n for n, reason in lost.items() if reason == "lost"}
        assert {part.part_id for part in journal.pending()} == {p for p, seq in self.parts.items() if seq is None}


TestAgainstAPlainList = AgainstAPlainList.TestCase
TestAgainstAPlainList.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert len(journal.journal_id) == 16
        assert (journal.first_seq, journal.last_seq) == (0, 0)
        assert journal.append(rows(1, 3)) is JournalState.OK
        with pytest.raises(ValueError, match="does not follow"):
            journal.append(rows(5, 1))
        journal_id = journal.journal_id
    with Journal(tmp_path, synchronous="normal") as journal:
        assert (journal.journal_id, journal.first_seq, journal.last_seq) == (journal_id, 1, 3)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path):
        code = (
            "import sys; from pathlib import Path; from edge.events.journal import Journal\n"
            "from edge.errors import JournalError\n"
            "try: Journal(Path(sys.argv[1]))\n"
            "except JournalError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert "in use by another station" in done.stdout
    assert str(tmp_path) in done.stdout
    Journal(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be kept") as caught:
        Journal(tmp_path / "file" / "cam0")
    assert caught.value.exit_code == 12


def test_the_folder_of_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert journal_folder("left") == Path("/state/redi-edge/left")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert journal_folder("left") == Path.home() / ".local/state/redi-edge/left"
    assert journal_folder("..", Path("/base")) == Path("/base/%2E.")


@pytest.mark.parametrize("damage", ["garbage", "torn", "foreign", "empty"])
def test_a_damaged_database_is_set_aside(tmp_path: Path, damage: str) -> None:
    with Journal(tmp_path) as journal:
        journal.append(rows(1, 500, 300))
        before = journal.journal_id
    path = tmp_path / "events.db"
    whole = path.read_bytes()
    if damage == "foreign":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE precious (x)")
        other.close()
    else:
        path.write_bytes({"garbage": os.urandom(9000), "torn": whole[:5000], "empty": b""}[damage])
    told: list[str] = []
    with Journal(tmp_path, report=told.append) as journal:
        assert journal.journal_id != before
        assert journal.append(rows(1, 2)) is JournalState.OK
        assert read_all(journal)[0].keys() == {1, 2}
        after = journal.journal_id
    kept = list(tmp_path.glob("damaged-*.db"))
    assert len(kept) == (0 if damage == "empty" else 1)
    assert all(any(each.name in message for message in told) for each in kept)
    with Journal(tmp_path) as journal:
        assert (journal.journal_id, journal.last_seq) == (after, 2)


def test_damage_that_shows_while_running(tmp_path: Path) -> None:
    told: list[str] = []
    with Journal(tmp_path, report=told.append) as journal:
        journal.append(rows(1, 500, 300))
        journal.accept("p", triggered_at_ns=5)
        journal_id = journal.journal_id
        journal._checkpoint()
        path = tmp_path / "events.db"
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * (size - 8192))
        journal._files.reader._connection.execute("PRAGMA cache_size = 0")  # type: ignore[union-attr]
        try:
            journal.read(journal_id, 0, limit=1000, max_bytes=10**9)
        except JournalUnavailableError:
            journal._recover()
        else:
            pytest.fail("the damage was not noticed")
        assert journal.state is JournalState.OK
        assert journal.append(rows(501, 2)) is JournalState.OK
        events, lost = read_all(journal, limit=1000)
        assert events.keys() == {501, 502}
        assert set(lost.values()) == {"lost"}
        assert [part.part_id for part in journal.pending()] == ["p"]
    assert any("set aside" in message for message in told)


def test_one_verdict_for_each_part(tmp_path: Path, disk: type[Disk]) -> None:
    with Journal(tmp_path) as journal:
        assert journal.accept("a", encoder=7, triggered_at_ns=1, deadline_ns=2) == (
            True, ("a", 7, 1, 2, None, ""), True,
        )  # fmt: skip
        assert not journal.accept("a", triggered_at_ns=3).new
        journal.accept("b", triggered_at_ns=2)
        journal.append(rows(1, 2, part_ids=["a", "unannounced"]))
        known = journal.accept("a", triggered_at_ns=9)
        assert (known.new, known.part.seq, known.part.journal_id) == (False, 1, journal.journal_id)
        assert not journal.accept("unannounced", triggered_at_ns=9).new
        disk.broken = True
        journal.append(rows(3, 1, part_ids=["b"]))
        late = journal.accept("c", encoder=1, triggered_at_ns=9)
        # The side file has it.
        assert (late.new, late.durable) == (True, True)
        shutil.copytree(tmp_path, tmp_path / "crashed", ignore=shutil.ignore_patterns("crashed"))
    disk.broken = False
    with Journal(tmp_path / "crashed") as journal:
        # "b" has had a verdict, which was lost: it must not get another.
        assert [part.part_id for part in journal.pending()] == ["c"]
        assert not journal.accept("b", triggered_at_ns=9).new
        assert read_all(journal)[1] == {3: "lost"}
        assert journal.last_seq == 3


def crash(folder: Path) -> Path:
    """Return a copy of the files as they are now."""
    copy = folder.with_name(f"{folder.name} crashed")
    shutil.copytree(folder, copy)
    return copy


def test_a_second_verdict_is_refused_and_takes_nothing(tmp_path: Path, disk: type[Disk]) -> None:
    with Journal(tmp_path) as journal:
        journal.accept("a", triggered_at_ns=1)
        journal.append(rows(1, 1, part_ids=["a"]))
    with Journal(tmp_path) as journal:
        for names in (["a"], ["b", "a"], ["b", "b"]):
            with pytest.raises(PartDoneError, match=repr(names[-1])):
                journal.append(rows(2, 2, part_ids=names))
            assert (journal.last_seq, journal.pending()) == (1, [])
        journal.append(rows(2, 1, part_ids=["b"]))
        disk.broken = True
        journal.append(rows(3, 1, part_ids=["c"]))
        for name in ("a", "b", "c"):
            with pytest.raises(PartDoneError):
                journal.append(rows(4, 1, part_ids=[name]))
        assert read_all(journal)[0].keys() == {1, 2, 3}


def test_a_part_that_had_its_verdict_is_known_while_the_disk_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with Journal(tmp_path) as journal:
        journal.accept("a", triggered_at_ns=1)
        journal.append(rows(1, 1, part_ids=["a"]))
        monkeypatch.setattr(Store, "part", fail)
        again = journal.accept("a", triggered_at_ns=2)
        assert (again.new, again.part.seq) == (False, 1)
        monkeypatch.undo()


def test_the_parts_of_events_that_found_no_room_have_had_their_verdict(tmp_path: Path, disk: type[Disk]) -> None:
    folder = tmp_path / "cam0"
    names = [f"part {number}" for number in range(700)]
    with Journal(folder, backlog_limit=2000) as journal:
        for name in names[:3]:
            journal.accept(name, triggered_at_ns=1)
        disk.broken = True
        for seq, name in enumerate(names, 1):
            journal.append(rows(seq, 1, 100, [name]))
        disk.broken = False
        steps = 0
        while journal._flush_step():
            # However far it came, none is asked for again.
            steps += 1
            with Journal(crash(folder)) as after:
                assert after.pending() == []
            shutil.rmtree(after.folder)
        assert steps > 1
        journal._recover()
    with Journal(folder) as journal:
        assert (journal.state, journal.pending()) == (JournalState.OK, [])
        assert not any(journal.accept(name, triggered_at_ns=2).new for name in names)


def test_what_the_side_file_knows_outlives_a_second_crash(tmp_path: Path, disk: type[Disk]) -> None:
    folder = tmp_path / "cam0"
    with Journal(folder) as journal:
        disk.broken = True
        assert journal.accept("waits", encoder=5, triggered_at_ns=1).durable
        journal.append(rows(1, 1, part_ids=["done"]))
        first = crash(folder)
    with Journal(first) as journal:
        assert journal.state is JournalState.DEGRADED
        assert [part.part_id for part in journal.pending()] == ["waits"]
        assert not journal.accept("done", triggered_at_ns=2).new
        second = crash(first)
    disk.broken = False
    with Journal(second) as journal:
        assert [(part.part_id, part.encoder) for part in journal.pending()] == [("waits", 5)]
        assert not journal.accept("done", triggered_at_ns=2).new
        assert journal.accept("new", triggered_at_ns=2).new


def test_a_disk_that_is_full_when_a_journal_begins_costs_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr("edge.events.store.kernel_boot_id", lambda: "one")
    with Journal(tmp_path, synchronous="normal") as journal:
        journal.append(rows(1, 3))
        first_id = journal.journal_id
    monkeypatch.setattr("edge.events.store.kernel_boot_id", lambda: "two")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_journal", full)
        journal = Journal(tmp_path)
        journal.append(rows(1, 2))
        journal._recover()
        assert journal.state is JournalState.DEGRADED
    with journal:
        journal._recover()
        journal._recover()
        assert journal.state is JournalState.OK
        assert journal.journal_id != first_id
        assert read_all(journal, first_id)[0].keys() == {1, 2, 3}
        assert read_all(journal)[0].keys() == {1, 2}
    assert not list(tmp_path.glob("damaged-*"))


def test_a_kill_right_after_a_power_cut_was_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cam0"
    monkeypatch.setattr("edge.events.store.kernel_boot_id", lambda: "one")
    with Journal(folder, synchronous="normal") as journal:
        journal.append(rows(1, 3))
        first_id = journal.journal_id
    monkeypatch.setattr("edge.events.store.kernel_boot_id", lambda: "two")
    copies = []

    def killed(store: Store, journal_id: str) -> None:
        copies.append(crash(folder))
        add_journal(store, journal_id)

    add_journal = Store.add_journal
    monkeypatch.setattr(Store, "add_journal", killed)
    Journal(folder, synchronous="normal").close()
    (copy,) = copies
    with Journal(copy, synchronous="normal") as journal:
        # Numbers above 3 may have been used before the power was cut.
        assert journal.journal_id != first_id


def test_a_part_that_cannot_be_stored_is_not_accepted(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(OverflowError):
            journal.accept("a", encoder=1 << 70, triggered_at_ns=1)
        assert journal.pending() == []
        assert journal.accept("a", encoder=1, triggered_at_ns=1).new
    with pytest.raises(ValueError, match="closed"):
        journal.accept("b", triggered_at_ns=1)


def test_the_size_is_that_of_the_files_and_the_log_stays_small(tmp_path: Path) -> None:
    with Journal(tmp_path, synchronous="normal") as journal:
        for seq in range(1, 1201):
            journal.accept(f"part {seq}", triggered_at_ns=seq)
            journal.append(rows(seq, 1, part_ids=[f"part {seq}"]))
            if journal._upkeep.log_is_long:
                journal._checkpoint()
        files = [tmp_path / "events.db", tmp_path / "events.db-wal"]
        assert journal.size_bytes == sum(path.stat().st_size for path in files)
        assert files[1].stat().st_size < 10 << 20


def test_long_trouble_does_not_make_each_event_dearer(
    tmp_path: Path, disk: type[Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = IssuedFile.write

    def noted(file: IssuedFile, issued: Issued) -> bool:
        sizes.append(len(issued.done))
        return write(file, issued)

    monkeypatch.setattr("edge.events.known._MAX_DONE", 5000)
    with Journal(tmp_path) as journal:
        disk.broken = True
        journal.append([row._replace(part_id=f"part {row.seq}") for row in rows(1, 6000, 0)])
        monkeypatch.setattr(IssuedFile, "write", noted)
        journal.append(rows(6001, 1, part_ids=["the last"]))
        assert sizes[-1] < 5000
        assert len(journal._parts.done) == 5000
        monkeypatch.undo()


def test_a_backlog_that_overflows_loses_its_oldest(tmp_path: Path, disk: type[Disk]) -> None:
    told: list[str] = []
    with Journal(tmp_path, backlog_limit=5000, report=told.append) as journal:
        journal.append(rows(1, 2))
        disk.broken = True
        for first in range(3, 103, 10):
            assert journal.append(rows(first, 10, 100)) is JournalState.DEGRADED
        assert journal._backlog.bytes <= 5000
        events, lost = read_all(journal)
        assert {1, 2, 102} <= events.keys()
        assert set(lost.values()) == {"lost"}
        disk.broken = False
        journal._recover()
        assert read_all(journal) == (events, lost)
        assert journal.append(rows(103, 1)) is JournalState.OK
    assert any("cannot be used" in message for message in told)
    assert any("written again" in message for message in told)


def test_a_disk_that_fails_from_the_start(tmp_path: Path, disk: type[Disk]) -> None:
    with Journal(tmp_path) as journal:
        journal.append(rows(1, 3))
        first_id = journal.journal_id
    disk.broken = True
    with Journal(tmp_path) as journal:
        second_id = journal.journal_id
        assert second_id != first_id
        assert journal.append(rows(1, 2)) is JournalState.DEGRADED
        assert read_all(journal)[0].keys() == {1, 2}
        with pytest.raises(JournalUnavailableError):
            journal.read(first_id, 0, limit=10, max_bytes=1000)
        shutil.copytree(tmp_path, tmp_path / "crashed", ignore=shutil.ignore_patterns("crashed"))
        disk.broken = False
        journal._recover()
        assert journal.state is JournalState.OK
        check_successor(journal.read(first_id, 0, limit=10, max_bytes=1000), [1, 2, 3], second_id)
        check_successor(journal.read("", 0, limit=10, max_bytes=1000), [1, 2, 3], second_id)
        assert read_all(journal)[0].keys() == {1, 2}
        assert journal.read("0123456789abcdef", 0, limit=10, max_bytes=1000) is None
    with Journal(tmp_path / "crashed") as journal:
        assert (journal.journal_id, journal.last_seq) == (second_id, 2)
        assert read_all(journal) == ({}, {1: "lost", 2: "lost"})


def check_successor(page: Page | None, seqs: list[int], following: str) -> None:
    assert page is not None
    assert [row.seq for row in page.rows] == seqs
    assert (page.through_seq, page.last_seq, page.next_journal_id) == (seqs[-1], seqs[-1], following)


def test_size_and_age_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    with Journal(tmp_path, size_limit=limit) as journal:
        journal.accept("old", triggered_at_ns=1)
        journal.append(rows(1, 1, part_ids=["old"]))
        for first in range(2, 4002, 100):
            journal.append(rows(first, 100, 1000))
        while journal._prune_step():
            pass
        store = journal._files.store
        assert store is not None
        assert limit / 2 < store.used_bytes() <= limit
        first = journal.first_seq
        assert 1 < first < 4001
        page = journal.read(journal.journal_id, 0, limit=10, max_bytes=10**6)
        assert page is not None
        assert page.lost == [(1, first - 1, "pruned")]
        assert page.rows[0].seq == page.first_seq == first
        assert journal.accept("old", triggered_at_ns=2).new
        now = SavedClock.now_ns
        monkeypatch.setattr(SavedClock, "now_ns", lambda clock: now(clock) + 40 * 86_400 * 10**9)
        while journal._prune_step():
            pass
        # The newest stays: the numbers go on from it.
        assert journal.first_seq == journal.last_seq == 4001


def test_a_clock_that_jumps_back_makes_nothing_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 5)
    assert SavedClock(10**18).now_ns() >= 10**18


def test_a_power_cut_in_normal_mode_begins_a_new_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for synchronous, boot in (("normal", "one"), ("normal", "one"), ("normal", "two"), ("full", "two"), ("full", "3")):
        monkeypatch.setattr("edge.events.store.kernel_boot_id", lambda boot=boot: boot)
        with Journal(tmp_path, synchronous=synchronous) as journal:  # type: ignore[arg-type]
            journal.append(rows(journal.last_seq + 1, 2))
            ids.append(journal.journal_id)
    assert [ids.index(each) for each in ids] == [0, 0, 2, 2, 2]


def test_a_reader_never_sees_half_a_batch_while_events_are_appended(tmp_path: Path) -> None:
    with Journal(tmp_path, synchronous="normal") as journal:
        ended = threading.Event()
        seen: list[int] = []

        def read() -> None:
            while not ended.is_set():
                page = journal.read(journal.journal_id, 0, limit=10**6, max_bytes=10**9)
                assert page is not None
                assert not page.lost
                seen.append(page.through_seq)

        thread = threading.Thread(target=read)
        thread.start()
        for first in range(1, 1001, 10):
            journal.append(rows(first, 10))
        ended.set()
        thread.join()
    assert all(count % 10 == 0 for count in seen)
    assert seen == sorted(seen)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with Journal(small_disk / "cam0") as journal:
        count = 0
        while journal.append(rows(count + 1, 20, 1000)) is JournalState.OK:
            count += 20
        assert count > 100
        count += 20
        filler.write_bytes(b"")
        for _ in range(20):
            journal.append(rows(count + 1, 1))
            count += 1
        events, lost = read_all(journal)
        assert (len(events), lost, journal.last_seq) == (count, {}, count)
        # A crash now: the numbers are known although nothing could be written.
        crashed = small_disk.parent / "crashed"
        shutil.copytree(small_disk / "cam0", crashed)
    with Journal(crashed) as journal:
        events, lost = read_all(journal)
        assert journal.last_seq == count == len(events) + len(lost)
        assert set(lost.values()) == {"lost"}
        assert min(lost) == max(events) + 1


def test_a_station_starts_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / "filler").touch()
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb") as file:
        file.write(bytes(2 << 20))
    told: list[str] = []
    with Journal(small_disk / "cam0", report=told.append) as journal:
        assert journal.append(rows(1, 5)) is JournalState.DEGRADED
        assert read_all(journal)[0].keys() == set(range(1, 6))
        (small_disk / "filler").unlink()
        journal._recover()
        assert journal.append(rows(6, 1)) is JournalState.OK
        assert read_all(journal)[0].keys() == set(range(1, 7))


def test_slot_files_survive_torn_writes(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    chance = random.Random(1)
    file = SlotFile(path, 256)
    assert file.read() is None
    newest = None
    for number in range(60):
        payload = b"%d" % number * chance.randint(1, 50)
        before = path.read_bytes()
        file.write(payload, sync=False)
        after = path.read_bytes()
        # Any part of the write may have reached the disk.
        cut = chance.randint(0, len(after))
        path.write_bytes(after[:cut] + before[cut:])
        torn = SlotFile(path, 256)
        assert torn.read() in (newest, payload)
        torn.close()
        path.write_bytes(after)
        newest = payload
    file.close()
    again = SlotFile(path, 256)
    assert again.read() == newest
    with pytest.raises(ValueError, match="do not fit"):
        again.write(bytes(300))
    again.close()
