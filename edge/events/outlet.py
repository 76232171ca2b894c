"""The station's sending socket: one ZeroMQ XPUB for all its cameras, in a thread of its own.

XPUB rather than PUB, because it shows the subscriptions that arrive: that is how `settle` knows that subscribers which
were already waiting are connected before the first event goes out, and how who joins gets the last status.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from edge.events.bind import serve
from edge.events.codec import MAX_TOPIC_BYTES
from edge.events.endpoint import check_endpoint
from edge.events.schema import STATUS_TOPIC
from edge.events.security import Gatekeeper, ServerKeys, check_exposure
from edge.supervision.pulse import Pulse

# A waiting ZeroMQ client tries again 100 to 200 ms after its last attempt, unless it was told otherwise.
_SETTLE_S = 0.35
# While subscriptions keep arriving, others may be on their way too; but a station must start.
_QUIET_S = 0.1
_SETTLE_LIMIT_S = 2.0
# What a subscriber may send us: subscriptions, which are no longer than a topic.
_MAX_SUBSCRIPTION_BYTES = 4 * MAX_TOPIC_BYTES
_MAX_DRAINED = 1000
# Statuses are repeated for who joins, but not at the will of who subscribes again and again.
_REPEAT_PAUSE_S = 0.05
_QUEUE = "inproc://outlet"


class Outlet:
    """Sends what any thread gives it, in that order, and never blocks.

    It binds when it is made, so that subscribers connect while the model still loads.  Beyond `hwm` waiting events, a
    subscriber that reads nothing loses the newest.

    Args:
        endpoint: `tcp://ADDRESS:PORT` (port `*` takes a free one) or `ipc://PATH`, a socket that only its owner may
            use.
        hwm: events that may wait for one slow subscriber.
        heartbeat_s: seconds between statuses.
        keys: on TCP, admit only clients that these allow.
        insecure: without keys, listen beyond loopback all the same.
        pulse: its thread's sign of life.

    Raises:
        PublishError: the endpoint is invalid or in use, or open to other machines without keys.
        KeysError: the keys cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        hwm: int = 100_000,
        heartbeat_s: float = 1.0,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        pulse: Pulse | None = None,
    ) -> None:
        check_endpoint(endpoint)
        check_exposure(endpoint, secured=keys is not None, insecure=insecure)
        self.gatekeeper: Gatekeeper | None = None
        self.context: zmq.Context[Any] = zmq.Context()
        self._heartbeat_s = heartbeat_s
        self._pulse = pulse
        self._heartbeats: list[Callable[[], None]] = []
        self._path: Path | None = None
        self._closed = False
        self._subscribed = threading.Condition()
        self._subscriptions = 0
        self._subscribed_at = 0.0
        self._socket: zmq.Socket[bytes] = self.context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES)
        # Every subscription is shown, not only the first to a topic.
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        try:
            self._path, self.gatekeeper = serve(self._socket, endpoint, keys)
        except BaseException:
            self._socket.close()
            self.context.term()
            raise
        self._bound_at = time.monotonic()
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._incoming: zmq.Socket[bytes] = self.context.socket(zmq.PULL)
        self._outgoing: zmq.Socket[bytes] = self.context.socket(zmq.PUSH)
        for each in (self._incoming, self._outgoing):
            each.setsockopt(zmq.LINGER, 0)
        self._incoming.setsockopt(zmq.RCVHWM, 0)
        self._outgoing.setsockopt(zmq.SNDHWM, 0)
        self._incoming.bind(_QUEUE)
        self._outgoing.connect(_QUEUE)
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
        self._thread.start()

    def send(self, parts: Sequence[bytes]) -> None:
        """Send a message."""
        with self._sending:
            if not self._closed:
                self._outgoing.send_multipart(parts)

    def add_heartbeat(self, beat: Callable[[], None]) -> None:
        """Call `beat`, which sends a status, in every interval and when a subscriber joins, in the outlet's thread."""
        self._heartbeats.append(beat)

    def remove_heartbeat(self, beat: Callable[[], None]) -> None:
        """Call it no more."""
        self._heartbeats.remove(beat)

    def settle(self) -> None:
        """Return once subscribers that were waiting before the endpoint was bound have had time to connect.

        At once where loading the model has taken longer than that already.
        """
        limit = max(self._bound_at + _SETTLE_LIMIT_S, time.monotonic())
        with self._subscribed:
            while True:
                until = max(self._bound_at + _SETTLE_S, self._subscribed_at + _QUIET_S)
                left = min(until, limit) - time.monotonic()
                if left <= 0:
                    return
                self._subscribed.wait(left)

    def wait_for_subscriber(self, timeout_s: float) -> bool:
        """Wait until any subscription has arrived; return whether one has."""
        with self._subscribed:
            return self._subscribed.wait_for(lambda: self._subscriptions > 0, timeout_s)

    def close(self, linger_s: float = 2.0) -> None:
        """Close, giving what still waits for subscribers up to this many seconds to leave."""
        with self._sending:
            if self._closed:
                return
            self._closed = True
            # Behind all that was sent.
            self._outgoing.send(b"")
        self._thread.join()
        if self._path is not None:
            # ZeroMQ leaves it behind.  As long as we listen there, it cannot be another station's.
            self._path.unlink(missing_ok=True)
        self._socket.close(linger=int(linger_s * 1000))
        self._incoming.close()
        self._outgoing.close()
        self.context.term()

    def __enter__(self) -> Outlet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._incoming, zmq.POLLIN)
        beat_at = time.monotonic() + self._heartbeat_s
        repeat_at = 0.0
        repeat = False
        while True:
            if self._pulse is not None:
                self._pulse.beat()
            due = min(beat_at, repeat_at) if repeat else beat_at
            ready = dict(poller.poll(max(0, int((due - time.monotonic()) * 1000) + 1)))
            if self._incoming in ready and not self._forward():
                return
            if self._socket in ready:
                repeat = self._drain() or repeat
            now = time.monotonic()
            if now >= beat_at or (repeat and now >= repeat_at):
                repeat, repeat_at = False, now + _REPEAT_PAUSE_S
                beat_at = now + self._heartbeat_s
                for beat in tuple(self._heartbeats):
                    beat()

    def _forward(self) -> bool:
        """Send what waits; return whether the outlet stays open."""
        for _ in range(_MAX_DRAINED):
            if not self._incoming.poll(0):
                return True
            parts = self._incoming.recv_multipart(copy=False)
            if len(parts) == 1:
                return False
            self._socket.send_multipart(parts)
        return True

    def _drain(self) -> bool:
        """Take the subscriptions that have arrived, lest they pile up; return whether any wants a status."""
        wanted = False
        topic = STATUS_TOPIC.encode()
        count = 0
        while count < _MAX_DRAINED and self._socket.poll(0):
            count += 1
            subscription = self._socket.recv_multipart()[0]
            if subscription[:1] == b"\x01":
                prefix = subscription[1:]
                wanted = wanted or prefix.startswith(topic) or topic.startswith(prefix)
        with self._subscribed:
            self._subscriptions += count
            self._subscribed_at = time.monotonic()
            self._subscribed.notify_all()
        return wanted
