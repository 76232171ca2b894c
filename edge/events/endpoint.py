"""Endpoints: where a station publishes its events and where a client finds them."""

from __future__ import annotations

import os

from edge.errors import PublishError

# What Linux stores of a socket's path, less its final zero.
_MAX_IPC_PATH = 107

#: Loopback: nothing listens beyond this machine unless it is asked to.  Below the range that Linux hands
#: out to outgoing connections (32768 and up), so that a waiting subscriber cannot happen to occupy the port
#: itself.
DEFAULT_ENDPOINT = "tcp://127.0.0.1:5560"

_EXAMPLES = f"an endpoint is tcp://ADDRESS:PORT, such as {DEFAULT_ENDPOINT}, or ipc:///PATH/TO/SOCKET"


def check_endpoint(endpoint: str) -> str:
    """Return the endpoint as ZeroMQ takes it.

    Raises:
        PublishError: it is not a `tcp://` or `ipc://` endpoint.
    """
    if not endpoint.isprintable():
        raise PublishError(f"{endpoint!r} holds characters that no endpoint has", _EXAMPLES)
    scheme, separator, address = endpoint.partition("://")
    if scheme == "tcp" and separator:
        host, colon, port = address.rpartition(":")
        number = int(port) if port.isascii() and port.isdigit() else -1
        if not colon or not host or (port != "*" and not 0 <= number <= 65535):
            raise PublishError(f"{endpoint!r} is not a TCP endpoint with an address and a port", _EXAMPLES)
        return endpoint
    if scheme == "ipc" and separator:
        if not address.strip() or address == "*" or "\0" in address:
            raise PublishError(f"{endpoint!r} names no socket path", _EXAMPLES)
        if len(os.fsencode(address)) > _MAX_IPC_PATH:
            raise PublishError(f"the socket path of {endpoint!r} is longer than {_MAX_IPC_PATH} bytes", _EXAMPLES)
        if address.startswith("@"):
            raise PublishError(
                f"{endpoint!r} is an abstract socket, which has no owner and no permissions",
                "name a path: ipc:///PATH/TO/SOCKET",
            )
        return endpoint
    raise PublishError(f"{endpoint!r} is not an endpoint", _EXAMPLES)
