"""The bridge: one side for each PLC, until it is told to stop."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.bridges.settings import PlcEntry
from edge.bridges.side import Side, StationAddress


class Bridge:
    """Drives all PLCs of a station.

    Args:
        entries: the PLCs.
        station: where the station is.
        cursors: folder for how far each PLC that is told every event has been told; made where it does not exist.
        report: called with messages for people, from any thread.
    """

    def __init__(
        self,
        entries: Sequence[PlcEntry],
        station: StationAddress,
        *,
        cursors: Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._ends: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.sides = [
            Side(
                entry,
                station,
                cursor=None if cursors is None else cursors / f"{entry.settings.name}.cursor",
                report=report,
            )
            for entry in entries
        ]

    def run(self) -> None:
        """Run until `stop` is called; the PLCs are told that we are not ready any more.

        Raises:
            BridgeError: a PLC's side cannot be opened.
            PublishError, KeysError, JournalError: the station cannot be reached like that, or a cursor cannot be kept.
        """
        try:
            for side in self.sides:
                side.start(self.stop)
            self._ends.get()
        finally:
            for side in self.sides:
                side.stop()
        for side in self.sides:
            if side.error is not None:
                raise side.error

    def stop(self) -> None:
        """End `run`.  May be called from any thread or signal handler."""
        self._ends.put(None)
