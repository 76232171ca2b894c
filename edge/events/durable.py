"""The client that misses nothing: live events, and what was missed from the station's journal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import zmq

from edge.events.client import ControlClient, read_result
from edge.events.codec import EventMessage, StatusMessage
from edge.events.control import control_endpoint
from edge.events.cursor import Cursor, CursorStore, FileCursor
from edge.events.follow import Follower, Gap, cursor_of
from edge.events.requests import Replayed, RequestError
from edge.events.security import ClientKeys
from edge.events.subscriber import Subscriber

# So many live messages may wait for a slow consumer: what overflows is replayed.
_RECEIVE_HWM = 1000
# Longer every time that none comes, as a link may be slow.
_ANSWER_S, _LONGEST_ANSWER_S = 2.0, 30.0
# After a refusal, or an answer that does not lead on.
_PAUSE_S = 0.5
# While no station is connected.
_RETRY_S = 0.1


class DurableSubscriber:
    """Yields every event of a station once and in order per camera, whatever stops and starts in between.

    It finds out from sequence numbers and heartbeats what it has missed, and asks the station's control endpoint for
    it.  What cannot be had any more comes as a `Gap`, never as silence.  All calls must come from one thread.

    A consumer that is killed misses nothing if it calls `ack` after it has dealt with an event: the next one starts
    behind the last acknowledged event, so that an event may come twice, under the same `journal_id` and `seq`.
    Exactly once: keep cursor and effect in one transaction, see `SqliteCursor`.

    Args:
        endpoint: where the station publishes.
        control: where it answers requests; by default the next port, or `PATH.control`.
        cursor: where to keep how far we are: a file, a store of your own, or None for this process alone.
        camera: only this camera; every one when None.
        start: where to begin without a cursor: with the oldest event that is kept, or from now on.
        keys: for a station on TCP that admits clients by key.

    Raises:
        PublishError: an endpoint is invalid.
        JournalError: the cursor's file cannot be used.
        KeysError: a key is not one for connecting.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        control: str | None = None,
        cursor: Path | CursorStore | None = None,
        camera: str | None = None,
        start: Literal["oldest", "now"] = "oldest",
        keys: ClientKeys | None = None,
    ) -> None:
        self._from_oldest = start == "oldest"
        self._owned = FileCursor(cursor) if isinstance(cursor, Path) else None
        self._store = self._owned if isinstance(cursor, Path) else cursor
        self._subscriber: Subscriber | None = None
        self._client: ControlClient | None = None
        try:
            self._cursors = {} if self._store is None else self._store.load()
            self._live = self._subscriber = Subscriber(endpoint, camera=camera, keys=keys, hwm=_RECEIVE_HWM)
            self._asking = self._client = ControlClient(control or control_endpoint(endpoint), keys=keys)
        except BaseException:
            self.close()
            raise
        for socket in (self._asking.socket, self._asking.monitor):
            self._live.wake_on(socket)
        self._wakers = zmq.Poller()
        self._followers: dict[str, Follower] = {}
        self._boots: dict[str, str] = {}
        self._asked: tuple[int, Follower] | None = None
        self._next_try = 0.0
        self._patience_s = _ANSWER_S
        #: Why events that are missing do not come; empty while all is well.
        self.trouble = ""

    @property
    def endpoint(self) -> str:
        """Where the station publishes."""
        return self._live.endpoint

    @property
    def connected(self) -> bool:
        """Whether a station is there."""
        return self._live.connected

    @property
    def behind(self) -> bool:
        """Whether the station has events that have not been delivered yet."""
        return any(follower.behind or follower.ready for follower in self._followers.values())

    @property
    def rejected(self) -> int:
        """Messages that were none of ours."""
        return self._live.rejected + sum(follower.damaged for follower in self._followers.values())

    @property
    def last_rejection(self) -> str:
        """Why the last of them was none."""
        return self._live.last_rejection

    @property
    def refusal(self) -> str:
        """Why the station does not let us in, as far as can be told; "" where it does."""
        return self._live.refusal

    def wake_on(self, waker: zmq.Socket[bytes] | int) -> None:
        """Let `receive` return None as soon as there is something to read from a socket or file descriptor too."""
        self._live.wake_on(waker)
        self._wakers.register(waker, zmq.POLLIN)

    def receive(self, timeout_s: float) -> EventMessage | StatusMessage | Gap | None:
        """Return the next event or gap, or a status as it comes; None when there was none within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            for follower in self._followers.values():
                if follower.ready:
                    return follower.ready.popleft()
            now = time.monotonic()
            self._ask(now)
            wait = deadline - now
            if self._asked is not None or any(follower.behind for follower in self._followers.values()):
                wait = min(wait, max(0.0, self._next_try - now))
            message = self._live.receive(max(0.0, wait))
            self._hear_answers()
            if self._asking.was_cut_off():
                self._ask_anew()
            if message is not None:
                self._see(message)
            if isinstance(message, StatusMessage):
                return message
            if message is None and self._wakers.poll(0):
                return None
            if time.monotonic() >= deadline and not any(each.ready for each in self._followers.values()):
                return None

    def ack(self, message: EventMessage | Gap) -> None:
        """Note that this message, and all before it of its camera, have been dealt with."""
        camera = message.camera if isinstance(message, Gap) else message.event.camera
        self._cursors[camera] = cursor_of(message)
        if self._store is not None:
            self._store.save(self._cursors)

    def close(self) -> None:
        """Close the connections and the cursor's file."""
        if self._subscriber is not None:
            self._subscriber.close()
        if self._client is not None:
            self._client.close()
        if self._owned is not None:
            self._owned.close()

    def __iter__(self) -> Iterator[EventMessage | StatusMessage | Gap]:
        while True:
            message = self.receive(60.0)
            if message is not None:
                yield message

    def __enter__(self) -> DurableSubscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follower(self, camera: str) -> Follower:
        follower = self._followers.get(camera)
        if follower is None:
            follower = Follower(camera, self._cursors.get(camera), from_oldest=self._from_oldest)
            self._followers[camera] = follower
        return follower

    def _see(self, message: EventMessage | StatusMessage) -> None:
        header = message.status if isinstance(message, StatusMessage) else message.event
        if self._boots.setdefault(header.camera, header.boot_id) != header.boot_id:
            # Not every loss of a connection is told in time.
            self._boots[header.camera] = header.boot_id
            self._ask_anew()
        follower = self._follower(header.camera)
        if isinstance(message, StatusMessage):
            follower.see_status(message)
        else:
            follower.see_event(message)
        self._keep_beginning(follower)

    def _ask_anew(self) -> None:
        """Forget the question that is under way: the station has gone with it."""
        self._asked, self._next_try, self._patience_s = None, 0.0, _ANSWER_S

    def _keep_beginning(self, follower: Follower) -> None:
        """Keep where "now" was, lest the next start calls a later time so."""
        if follower.began is not None and follower.camera not in self._cursors:
            self._cursors[follower.camera] = follower.began
            if self._store is not None:
                self._store.save(self._cursors)

    def _ask(self, now: float) -> None:
        """Ask for what is missing, one question at a time."""
        if now < self._next_try:
            return
        if self._asked is not None:
            self._asked = None
            self.trouble = f"no answer from {self._asking.endpoint}"
            self._patience_s = min(2 * self._patience_s, _LONGEST_ANSWER_S)
            self._asking.reconnect()
        for camera, follower in self._followers.items():
            if not follower.behind:
                continue
            number = self._asking.send("replay", follower.request())
            if number is None:
                self._next_try = now + _RETRY_S
                return
            self._asked, self._next_try = (number, follower), now + self._patience_s
            # The next question is another camera's.
            self._followers[camera] = self._followers.pop(camera)
            return

    def _hear_answers(self) -> None:
        while (reply := self._asking.receive(0.0)) is not None:
            if self._asked is None or reply.id != self._asked[0]:
                continue
            follower = self._asked[1]
            self._asked, self._patience_s = None, _ANSWER_S
            try:
                led_on = follower.take(read_result(reply, Replayed))
                self.trouble = "" if led_on else "the station's answers do not lead on"
            except RequestError as error:
                led_on = follower.refuse(error)
                self.trouble = "" if led_on else error.problem
            self._next_try = 0.0 if led_on else time.monotonic() + _PAUSE_S


__all__ = ["Cursor", "CursorStore", "DurableSubscriber", "FileCursor", "Gap", "cursor_of"]
