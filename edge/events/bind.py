"""Binding a station's sockets: ipc sockets are their owner's alone, and every failure says what to do."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import zmq

from edge.errors import PublishError
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.events.security import Gatekeeper, ServerKeys, secure_server


def set_keepalive(socket_: zmq.Socket[bytes]) -> None:
    """Let the kernel find out that a peer's machine is gone.

    ZeroMQ's own heartbeats would also cut off one that is merely slow, with all that waits for it.
    """
    socket_.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket_.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket_.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket_.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def serve(socket_: zmq.Socket[bytes], endpoint: str, keys: ServerKeys | None) -> tuple[Path | None, Gatekeeper | None]:
    """Bind as `bind` does; on TCP, with keys, for the clients alone that these allow.

    Returns:
        The path of an ipc socket, and who decides which clients may connect; None where all may.

    Raises:
        PublishError: the endpoint is in use or cannot be bound.
        KeysError: the keys cannot be used.
    """
    set_keepalive(socket_)
    socket_.setsockopt(zmq.IPV6, "[" in endpoint)
    gatekeeper = secure_server(socket_, keys) if keys is not None and endpoint.startswith("tcp://") else None
    return bind(socket_, endpoint), gatekeeper


def bind(socket_: zmq.Socket[bytes], endpoint: str) -> Path | None:
    """Bind; an ipc socket gets mode 0600 and replaces one that a dead station left behind.

    Returns:
        The path of an ipc socket, which ZeroMQ leaves behind.

    Raises:
        PublishError: the endpoint is in use or cannot be bound.
    """
    if not endpoint.startswith("ipc://"):
        # ZeroMQ binds to addresses and interfaces, not to host names; this one everybody writes.
        address = endpoint.replace("tcp://localhost:", "tcp://127.0.0.1:")
        try:
            socket_.bind(address)
        except zmq.ZMQError as error:
            raise _bind_error(endpoint, error.errno or 0) from error
        return None
    _remove_stale(endpoint)
    umask = os.umask(0o177)
    try:
        socket_.bind(endpoint)
    except zmq.ZMQError as error:
        raise _bind_error(endpoint, error.errno or 0) from error
    finally:
        os.umask(umask)
    return Path(endpoint.removeprefix("ipc://"))


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
