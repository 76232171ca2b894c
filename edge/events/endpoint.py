"""Endpoints: where a station publishes its events and where a client finds them."""

from __future__ import annotations

import os

from edge.errors import PublishError

# What Linux stores of a socket's path, less its final zero.
_MAX_IPC_PATH = 107
_LAST_PORT = 65535

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
        if not colon or not host or (port != "*" and not 0 <= number <= _LAST_PORT):
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


def endpoint_beside(events: str, places: int, name: str, what: str) -> str:
    """Return the endpoint so many ports after a station's event endpoint, or at `PATH.NAME`.

    A free port for events (`*` or 0) means a free one here.

    Args:
        events: where the station publishes.
        places: how many ports on.
        name: of the ipc socket's suffix.
        what: is missing where there is no such port, for people.

    Raises:
        PublishError: the endpoint is invalid, or there is no such port.
    """
    check_endpoint(events)
    if events.startswith("ipc://"):
        return check_endpoint(f"{events}.{name}")
    address, _, port = events.rpartition(":")
    if port in ("*", "0"):
        return events
    if int(port) + places > _LAST_PORT:
        raise PublishError(f"{events} leaves {what}", "use a lower port")
    return f"{address}:{int(port) + places}"
