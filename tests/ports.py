"""Ports of loopback for servers whose clients must know them beforehand, or that start again at the same one."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

#: Below those that systems give to clients, whose sockets would come in between.
_RANGE = range(12_000, 32_000)


def free_port(successive: int = 3) -> int:
    """Return a port at which nobody listens, nor at the next ones: a station's control and previews are there."""
    for first in random.SystemRandom().sample(_RANGE, 1000):
        with suppress(OSError), ExitStack() as probes:
            for port in range(first, first + successive):
                probe = probes.enter_context(socket.socket())
                # As servers do: what a closed connection has left is in nobody's way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return first
    raise OSError(f"no {successive} free ports from {_RANGE.start} to {_RANGE.stop}")
