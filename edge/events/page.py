"""A stretch of a journal in which every hole has a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edge.events.backlog import size_of, take_rows
from edge.events.store import Row, StoredPage


class LostRange(NamedTuple):
    """Events `first` to `last` cannot be replayed; `reason` is `lost` or `pruned`."""

    first: int
    last: int
    reason: str


class Page(NamedTuple):
    """A stretch of a journal: of the numbers above the asked-for up to `through_seq`, all are in `rows` or `lost`.

    `first_seq` is the oldest event that is kept, `last_seq` the last issued, 0 where there is none.
    `next_journal_id` is the journal that follows when this page is through, empty where there is none.
    """

    journal_id: str
    rows: list[Row]
    lost: list[LostRange]
    through_seq: int
    first_seq: int
    last_seq: int
    next_journal_id: str


def make_page(stored: StoredPage, after_seq: int, through_seq: int, last_seq: int) -> Page:
    """Return the page of what is stored, up to `through_seq` where that is all there is."""
    through = stored.rows[-1].seq if stored.full else max(through_seq, after_seq)
    lost: list[LostRange] = []
    due = after_seq + 1
    for seq in (*(row.seq for row in stored.rows), through + 1):
        if due < seq:
            lost.extend(_name_hole(due, seq - 1, stored))
        due = seq + 1
    return Page(
        journal_id=stored.journal_id,
        rows=stored.rows,
        lost=lost,
        through_seq=through,
        first_seq=stored.first_seq,
        last_seq=last_seq,
        next_journal_id="" if stored.full else stored.next_journal_id,
    )


def make_whole_page(
    stored: StoredPage, waiting: list[Row], after_seq: int, last_seq: int, first_seq: int, *, limit: int, max_bytes: int
) -> Page:
    """Return the page of what is stored and what waits in memory behind it; `first_seq` is that of all in memory."""
    if stored.full or not waiting:
        return make_page(stored, after_seq, stored.last_seq, last_seq)
    size = sum(map(size_of, stored.rows))
    if len(stored.rows) < limit and size < max_bytes:
        stored.rows.extend(take_rows(waiting, limit - len(stored.rows), max_bytes - size))
    through = stored.rows[-1].seq if stored.rows else stored.last_seq
    page = make_page(stored, after_seq, max(through, stored.last_seq), last_seq)
    return page._replace(first_seq=stored.first_seq or first_seq)


def _name_hole(first: int, last: int, stored: StoredPage) -> Iterator[LostRange]:
    for lost_first, lost_last in stored.lost:
        if first <= lost_last and lost_first <= last:
            if first < lost_first:
                yield _unrecorded(first, lost_first - 1, stored)
            yield LostRange(max(first, lost_first), min(last, lost_last), "lost")
            first = lost_last + 1
    if first <= last:
        yield _unrecorded(first, last, stored)


def _unrecorded(first: int, last: int, stored: StoredPage) -> LostRange:
    return LostRange(first, last, "pruned" if last < stored.first_seq else "lost")
