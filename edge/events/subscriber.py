"""The client's side of the event stream."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

import zmq
from zmq.utils.monitor import recv_monitor_message

from edge.errors import PublishError
from edge.events.codec import MAX_MASK_BYTES, EventMessage, Message, MessageError, decode_message
from edge.events.endpoint import DEFAULT_ENDPOINT, check_endpoint
from edge.events.schema import EVENT_TOPIC, STATUS_TOPIC
from edge.events.security import ClientKeys, HandshakeJudge, secure_client

# Short, so that a subscriber that waits is there within the time a starting station gives it.
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 100
# A machine that is switched off answers nothing: give up such an attempt, lest it outlives the machine's
# start.
_CONNECT_TIMEOUT_MS = 1000
_HANDSHAKE_TIMEOUT_MS = 2000
_RECEIVE_HWM = 10_000
# ZeroMQ never comes back from a connection that broke its protocol or the size limit: after this long, we do.
_REVIVE_AFTER_S = 0.2
# Who is not let in asks again, as keys may be allowed later, but does not storm the door.
_ASK_AGAIN_AFTER_S = 1.0

_MONITOR = "inproc://connection"
_EVENTS = HandshakeJudge.EVENTS | zmq.Event.DISCONNECTED | zmq.Event.CONNECT_RETRIED


class Subscriber:
    """Receives events and statuses from a station, which may start, stop and start again at any time.

    Whatever arrives that is no message of ours is skipped and counted in `rejected`; `last_rejection` says
    why. Where the station does not let us in, `refusal` names the likely cause, and we go on asking. Iterating waits
    without end.  All calls must come from one thread.

    Args:
        endpoint: the station's, `tcp://ADDRESS:PORT` or `ipc://PATH`.
        camera: receive only this camera; every one of the endpoint when None.
        keys: for a station on TCP that admits clients by key.
        hwm: messages that may wait here to be received.

    Raises:
        PublishError: the endpoint is invalid.
        KeysError: a key is not one for connecting.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        camera: str | None = None,
        keys: ClientKeys | None = None,
        hwm: int = _RECEIVE_HWM,
    ) -> None:
        self.endpoint = check_endpoint(endpoint)
        self.rejected = 0
        self.last_rejection = ""
        self.connected = False
        self._camera = camera
        if endpoint.startswith("ipc://"):
            keys = None
        self._judge = HandshakeJudge(keys)
        self._lost_at: float | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, hwm),
            (zmq.MAXMSGSIZE, MAX_MASK_BYTES),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
            (zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE_TIMEOUT_MS),
            (zmq.IPV6, int("[" in endpoint)),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 10),
            (zmq.TCP_KEEPALIVE_INTVL, 5),
            (zmq.TCP_KEEPALIVE_CNT, 3),
        ):
            self._socket.setsockopt(option, value)
        if keys is not None:
            secure_client(self._socket, keys)
        for topic in (EVENT_TOPIC, STATUS_TOPIC):
            self._socket.subscribe(topic + (camera or ""))
        # Unbounded: a full monitor would stop the thread that connects while the caller is busy elsewhere.
        self._monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._socket.monitor(_MONITOR, _EVENTS)
        self._monitor.connect(_MONITOR)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._wakers: list[zmq.Socket[bytes] | int] = []
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            hint = f"use the endpoint that edge-run publishes at, such as {DEFAULT_ENDPOINT}"
            raise PublishError(f"cannot connect to {endpoint}: {zmq.strerror(error.errno or 0)}", hint) from error

    @property
    def refusal(self) -> str:
        """Why the station does not let us in, as far as can be told; "" where it does."""
        return self._judge.refusal

    def wake_on(self, waker: zmq.Socket[bytes] | int) -> None:
        """Let `receive` return as soon as there is something to read from another socket or file descriptor too."""
        self._poller.register(waker, zmq.POLLIN)
        self._wakers.append(waker)

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, or None when none came within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            wait = left if self._lost_at is None else min(left, _REVIVE_AFTER_S)
            ready = dict(self._poller.poll(math.ceil(wait * 1000)))
            if self._monitor in ready:
                self._follow_connection()
            self._revive()
            if self._socket in ready:
                message = self._decode(self._socket.recv_multipart())
                if message is not None:
                    return message
            if time.monotonic() >= deadline or any(waker in ready for waker in self._wakers):
                return None

    def close(self) -> None:
        """Close the connection."""
        self._socket.monitor(None, 0)
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()

    def __iter__(self) -> Iterator[Message]:
        while True:
            message = self.receive(60.0)
            if message is not None:
                yield message

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self, parts: list[bytes]) -> Message | None:
        try:
            message = decode_message(parts)
        except MessageError as error:
            self._reject(str(error))
            return None
        # A ZeroMQ subscription is a prefix: one for cam1 also brings cam10.
        header = message.event if isinstance(message, EventMessage) else message.status
        return message if self._camera in (None, header.camera) else None

    def _reject(self, reason: str) -> None:
        self.rejected += 1
        self.last_rejection = reason

    def _follow_connection(self) -> None:
        while self._monitor.poll(0):
            report = recv_monitor_message(self._monitor)
            event = report["event"]
            self._judge.see(event, report["value"])
            self.connected = event == zmq.Event.HANDSHAKE_SUCCEEDED
            # ZeroMQ reports the loss of a connection and then, where it will try again, that it will.
            self._lost_at = time.monotonic() if event == zmq.Event.DISCONNECTED else None

    def _revive(self) -> None:
        patience = _ASK_AGAIN_AFTER_S if self.refusal else _REVIVE_AFTER_S
        if self._lost_at is None or time.monotonic() - self._lost_at < patience:
            return
        self._lost_at = None
        if not self.refusal:
            self._reject("the sender broke ZeroMQ's protocol or the limit on message size; connecting again")
        with suppress(zmq.ZMQError):
            self._socket.disconnect(self.endpoint)
        self._socket.connect(self.endpoint)
