"""What must be known after a crash although the journal could not be written: the journal's side file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.events.slotfile import SlotFile
from edge.events.store import Part, Store

_SLOT_BYTES = 1 << 16
# Journals that began while the disk failed, one at each start of the station.
_MAX_JOURNALS = 16


class Issued(msgspec.Struct):
    """Sequence numbers and parts that the database may not know.

    `journals` are pairs of journal and last issued number, the current journal last; `pending` are parts accepted,
    `done` the ids of parts that had their verdict, while the journal was degraded.
    """

    journals: list[tuple[str, int]] = []
    pending: list[Part] = []
    done: list[str] = []


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Issued)


class IssuedFile:
    """Keeps an `Issued` in a file that is allocated beforehand and overwritten in place.

    Raises:
        OSError: it cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = SlotFile(path, _SLOT_BYTES)

    def read(self) -> Issued:
        """Return what was written last; what cannot be understood is nothing.

        Raises:
            OSError: it cannot be read.
        """
        payload = self._file.read()
        try:
            return Issued() if payload is None else _decoder.decode(payload)
        except msgspec.DecodeError:
            return Issued()

    def write(self, issued: Issued) -> bool:
        """Write it to the disk; return whether all parts found room.

        Raises:
            OSError: it cannot be written.
        """
        issued.journals = issued.journals[-_MAX_JOURNALS:]
        payload = _encoder.encode(issued)
        whole = len(payload) <= self._file.capacity
        while len(payload) > self._file.capacity:
            # Parts that had their verdict longest ago are the least likely to come up again.
            if issued.done:
                issued.done = issued.done[len(issued.done) // 2 + 1 :]
            else:
                issued = Issued(issued.journals, issued.pending[: len(issued.pending) // 2])
            payload = _encoder.encode(issued)
        self._file.write(payload)
        return whole

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def settle(noted: Issued, store: Store, *, ours: str) -> Iterator[tuple[str, int, int]]:
    """Record in the database what only the side file knows, after a crash; yield the ranges that are lost.

    Args:
        noted: the side file's.
        store: the database.
        ours: a journal that is being written, whose events are not lost; empty where there is none.

    Yields:
        The journal, the first and the last number of each range.
    """
    present = store.journal_ids()
    for journal_id, issued in noted.journals:
        if journal_id == ours or issued == 0:
            continue
        if journal_id not in present:
            store.add_journal(journal_id)
        last = store.last_seq(journal_id)
        if issued > last:
            store.record_lost(journal_id, last + 1, issued)
            yield journal_id, last + 1, issued
    store.add_parts(noted.pending)
    present = store.journal_ids()
    known = [each for each in noted.journals if each[0] in present]
    if noted.done and known:
        store.complete_parts(noted.done, *known[-1])
