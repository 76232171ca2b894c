"""The station's side of the event stream: one ZeroMQ XPUB socket.

XPUB rather than PUB, because it shows the subscriptions that arrive: that is how `settle` knows that
subscribers which were already waiting are connected before the first event goes out.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import zmq

from edge.errors import PublishError, UsageError
from edge.events.codec import MAX_TOPIC_BYTES, encode_event, encode_status
from edge.events.endpoint import DEFAULT_ENDPOINT, check_endpoint
from edge.events.schema import Event, Status

# A waiting ZeroMQ client tries again 100 to 200 ms after its last attempt, unless it was told otherwise.
_SETTLE_S = 0.35
# While subscriptions keep arriving, others may be on their way too; but a station must start.
_QUIET_S = 0.1
_SETTLE_LIMIT_S = 2.0
# What a subscriber may send us: subscriptions, which are no longer than a topic.
_MAX_SUBSCRIPTION_BYTES = 4 * MAX_TOPIC_BYTES
_MAX_DRAINED = 1000
_MAX_CAMERA_NAME = 64


class Publisher:
    """Publishes the events and the status of one camera.

    It binds when it is made, so that subscribers connect while the model still loads.  All calls must come
    from one thread at a time: it may be made in one and then handed to the station's publisher thread,
    which alone goes on to use it.  Sending never blocks: beyond `hwm` waiting events, a subscriber that
    reads nothing loses the newest.

    Args:
        endpoint: `tcp://ADDRESS:PORT` (port `*` takes a free one) or `ipc://PATH`, a socket that only its
            owner may use.
        camera: its name, part of every topic.
        hwm: events that may wait for one slow subscriber.

    Raises:
        PublishError: the endpoint is invalid or in use.
        UsageError: the camera's name cannot be part of a topic.
    """

    def __init__(self, endpoint: str, *, camera: str, hwm: int = 100_000) -> None:
        check_endpoint(endpoint)
        if not 1 <= len(camera) <= _MAX_CAMERA_NAME or not camera.isprintable() or "/" in camera:
            raise UsageError(
                f"{camera!r} cannot be the name of a camera",
                f"use 1 to {_MAX_CAMERA_NAME} printable characters and no slash, such as cam0",
            )
        self.camera = camera
        self.boot_id = secrets.token_hex(8)
        self.last_seq = 0
        self._next_seq = 1
        self._path: Path | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        # The kernel finds out that a subscriber's machine is gone.  ZeroMQ's own heartbeats would also cut
        # off one that is merely slow, with all that waits for it.
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        try:
            _bind(self._socket, endpoint)
        except BaseException:
            self.close(0.0)
            raise
        if endpoint.startswith("ipc://"):
            self._path = Path(endpoint.removeprefix("ipc://"))
        self._bound_at = time.monotonic()
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def settle(self) -> None:
        """Return once subscribers that were waiting before the endpoint was bound have had time to connect.

        At once where loading the model has taken longer than that already.
        """
        until = self._bound_at + _SETTLE_S
        if self._drain():
            until = max(until, time.monotonic() + _QUIET_S)
        limit = max(until, self._bound_at + _SETTLE_LIMIT_S)
        while (left := min(until, limit) - time.monotonic()) > 0:
            if self._socket.poll(max(1, int(left * 1000))):
                self._drain()
                until = max(until, time.monotonic() + _QUIET_S)

    def next_seq(self) -> int:
        """Take the next sequence number: the event that is built with it must be published."""
        seq = self._next_seq
        self._next_seq += 1
        return seq

    def publish(self, event: Event, mask: bytes) -> None:
        """Send an event, built with `boot_id` and `next_seq()`, and its mask's compressed counts."""
        self._drain()
        self._socket.send_multipart(encode_event(event, mask))
        self.last_seq = event.seq

    def status(self, state: str, counters: Mapping[str, int], *, bundle_id: str = "", calibration_id: str = "") -> None:
        """Send the station's state, `running` or `stopped`, and its counters."""
        self._drain()
        status = Status(
            boot_id=self.boot_id,
            camera=self.camera,
            state=state,
            at_ns=time.time_ns(),
            last_seq=self.last_seq,
            counters=dict(counters),
            bundle_id=bundle_id,
            calibration_id=calibration_id,
        )
        self._socket.send_multipart(encode_status(status))

    def close(self, linger_s: float = 2.0) -> None:
        """Close, giving what still waits for subscribers up to this many seconds to leave."""
        if self._path is not None:
            # ZeroMQ leaves it behind.  As long as we listen there, it cannot be another station's.
            self._path.unlink(missing_ok=True)
            self._path = None
        self._socket.close(linger=int(linger_s * 1000))
        self._context.term()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drain(self) -> bool:
        """Take the subscriptions that have arrived, lest they pile up; True where there were any."""
        for count in range(_MAX_DRAINED):
            if not self._socket.poll(0):
                return count > 0
            self._socket.recv_multipart()
        return True


def _bind(socket_: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind; an ipc socket gets mode 0600 and replaces one that a dead station left behind."""
    if not endpoint.startswith("ipc://"):
        # ZeroMQ binds to addresses and interfaces, not to host names; this one everybody writes.
        address = endpoint.replace("tcp://localhost:", "tcp://127.0.0.1:")
        try:
            socket_.bind(address)
        except zmq.ZMQError as error:
            raise _bind_error(endpoint, error.errno or 0) from error
        return
    _remove_stale(endpoint)
    umask = os.umask(0o177)
    try:
        socket_.bind(endpoint)
    except zmq.ZMQError as error:
        raise _bind_error(endpoint, error.errno or 0) from error
    finally:
        os.umask(umask)


def _remove_stale(endpoint: str) -> None:
    """Remove the path if nobody listens there: ZeroMQ itself would take it even from a live station."""
    path = endpoint.removeprefix("ipc://")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise PublishError(f"cannot publish at {endpoint}: {path} exists and is no socket", "name another path")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except TimeoutError:
        pass
    except OSError as error:
        raise PublishError(f"cannot publish at {endpoint}: {error.strerror or error}", "name another path") from error
    raise _in_use(endpoint)


def _in_use(endpoint: str) -> PublishError:
    return PublishError(
        f"cannot publish at {endpoint}: it is in use",
        "stop the station or program that uses it, or name another endpoint",
    )


def _bind_error(endpoint: str, number: int) -> PublishError:
    if number == errno.EADDRINUSE:
        return _in_use(endpoint)
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV):
        hint = f"use an address of this machine, such as {DEFAULT_ENDPOINT}, or tcp://*:PORT for all of them"
        return PublishError(f"cannot publish at {endpoint}: this machine has no such address", hint)
    if number == errno.EACCES:
        hint = "use a port above 1023, or a folder in which you may write"
        return PublishError(f"cannot publish at {endpoint}: not permitted", hint)
    if number == errno.ENOENT:
        return PublishError(f"cannot publish at {endpoint}: its folder does not exist", "make the folder first")
    hint = f"use an endpoint such as {DEFAULT_ENDPOINT}"
    return PublishError(f"cannot publish at {endpoint}: {zmq.strerror(number)}", hint)
