"""One camera's events and status on their way out: into the journal first, then to the subscribers."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from edge.errors import UsageError
from edge.events.codec import encode_event, encode_status
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.schema import Event, Status
from edge.events.security import Gatekeeper, ServerKeys
from edge.events.store import Row

_MAX_CAMERA_NAME = 64

Counters = Mapping[str, int] | Callable[[], Mapping[str, int]]


class Publisher:
    """Publishes the events and the status of one camera.

    Events come from one thread at a time; statuses may come from any.  From the first status on, it is repeated every
    second, and for every subscriber that joins, with what is true by then.

    Args:
        outlet: where it is sent: an endpoint, at which an outlet of its own is opened, one that cameras share, or None
            to send nothing: events are then only numbered and kept.
        camera: its name, part of every topic.
        journal: keeps every event before it is published; None to keep none.
        hwm, keys, insecure: for an outlet of its own, see `Outlet`.

    Raises:
        PublishError: the endpoint is invalid or in use, or open to other machines without keys.
        KeysError: the keys cannot be used.
        UsageError: the camera's name cannot be part of a topic.
    """

    def __init__(
        self,
        outlet: str | Outlet | None,
        *,
        camera: str,
        journal: Journal | None = None,
        hwm: int = 100_000,
        keys: ServerKeys | None = None,
        insecure: bool = False,
    ) -> None:
        check_camera_name(camera)
        self.camera = camera
        self.boot_id = secrets.token_hex(8)
        self.journal = journal
        self._owned: Outlet | None = None
        if isinstance(outlet, str):
            outlet = self._owned = Outlet(outlet, hwm=hwm, keys=keys, insecure=insecure)
        self.outlet = outlet
        self.last_seq = 0 if journal is None else journal.last_seq
        self._next_seq = self.last_seq + 1
        #: Further counters of what surrounds the station; asked in any thread that sends a status.
        self.more_counters: Callable[[], Mapping[str, int]] | None = None
        self._state = ""
        self._counters: Counters = {}
        self._ids = ("", "", "")
        # Over sending and what statuses tell of it: a status never speaks of events that come after it.
        self._lock = threading.Lock()
        if outlet is not None:
            outlet.add_heartbeat(self._beat)

    @property
    def endpoint(self) -> str:
        """Where subscribers connect."""
        return "" if self.outlet is None else self.outlet.endpoint

    @property
    def gatekeeper(self) -> Gatekeeper | None:
        """Who decides which clients may connect; None where all may."""
        return None if self.outlet is None else self.outlet.gatekeeper

    @property
    def journal_id(self) -> str:
        """What sequence numbers belong to: the journal, or without one this run of the station."""
        return self.boot_id if self.journal is None else self.journal.journal_id

    def settle(self) -> None:
        """Return once subscribers that were waiting before the endpoint was bound have had time to connect."""
        if self.outlet is not None:
            self.outlet.settle()

    def next_seq(self) -> int:
        """Take the next sequence number: the event that is built with it must be published."""
        seq = self._next_seq
        self._next_seq += 1
        return seq

    def publish(self, event: Event, mask: bytes) -> None:
        """Publish one event, see `publish_all`."""
        self.publish_all([(event, mask)])

    def publish_all(self, events: Sequence[tuple[Event, bytes]]) -> None:
        """Keep events and send them; all that wait belong in one call, as they share one wait for the disk.

        Args:
            events: each built with `boot_id`, `journal_id` and `next_seq()`, and its mask's compressed counts.

        Raises:
            PartDoneError: a part has had its verdict, or has two of them here; none is kept or sent.
        """
        messages = [encode_event(event, mask) for event, mask in events]
        if self.journal is not None:
            rows = [
                Row(event.seq, header, mask, event.part_id)
                for (event, _), (_, header, mask) in zip(events, messages, strict=True)
            ]
            try:
                self.journal.append(rows)
            except ValueError:
                # It has taken none of them: their numbers are still to be had.
                self._next_seq = self.journal.last_seq + 1
                raise
        with self._lock:
            if self.outlet is not None:
                for message in messages:
                    self.outlet.send(message)
            if events:
                self.last_seq = events[-1][0].seq

    def status(
        self, state: str, counters: Counters, *, bundle_id: str = "", calibration_id: str = "", reason: str = ""
    ) -> None:
        """Send the station's state, such as `running` or `stopped`, and its counters.

        Where `counters` is a function, every repetition asks it again, from another thread.
        """
        with self._lock:
            self._state, self._counters, self._ids = state, counters, (bundle_id, calibration_id, reason)
            self._send_status()

    def latest_status(self) -> Status | None:
        """Return the status as it is now; None before the first was sent."""
        with self._lock:
            return self._make_status() if self._state else None

    def close(self, linger_s: float = 2.0) -> None:
        """End; close an outlet of its own, giving what still waits up to this many seconds to leave."""
        if self._owned is not None:
            self._owned.close(linger_s)
        elif self.outlet is not None:
            self.outlet.remove_heartbeat(self._beat)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _beat(self) -> None:
        with self._lock:
            if self._state:
                self._send_status()

    def _send_status(self) -> None:
        if self.outlet is not None:
            self.outlet.send(encode_status(self._make_status()))

    def _make_status(self) -> Status:
        journal = self.journal
        counters = self._counters() if callable(self._counters) else self._counters
        if self.gatekeeper is not None:
            counters = {**counters, "refused": self.gatekeeper.refused}
        if self.more_counters is not None:
            counters = {**counters, **self.more_counters()}
        return Status(
            boot_id=self.boot_id,
            camera=self.camera,
            state=self._state,
            at_ns=time.time_ns(),
            last_seq=self.last_seq,
            counters=dict(counters),
            bundle_id=self._ids[0],
            calibration_id=self._ids[1],
            reason=self._ids[2],
            journal_id=self.journal_id,
            first_seq=0 if journal is None else journal.first_seq,
            journal="none" if journal is None else journal.state.value,
        )


def check_camera_name(camera: str) -> None:
    """Refuse what cannot be part of a topic or name a folder.

    Raises:
        UsageError: says what a name may be.
    """
    if not 1 <= len(camera) <= _MAX_CAMERA_NAME or not camera.isprintable() or "/" in camera:
        raise UsageError(
            f"{camera!r} cannot be the name of a camera",
            f"use 1 to {_MAX_CAMERA_NAME} printable characters and no slash, such as cam0",
        )
