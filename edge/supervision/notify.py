"""Telling systemd how the station is: the sd_notify protocol, a datagram to the socket that the environment names.

Where there is no such socket, or it cannot be written, nothing happens: supervision must not stop the line.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

_MICROSECONDS = 1_000_000
_MAX_STATUS = 400


class Notifier:
    """Sends the station's state to systemd.

    Args:
        environment: holds `NOTIFY_SOCKET` (a path, or `@NAME` for an abstract socket), `WATCHDOG_USEC` and
            `WATCHDOG_PID`, as sd_notify(3) and sd_watchdog_enabled(3) describe them; None for the process's.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._status = ""
        # What was told before a stall, to be told again after it.
        self._interrupted: str | None = None
        self._socket: socket.socket | None = None
        self._address = ""
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith(("/", "@")):
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # A manager that does not read must not hold up whoever tells it something.
            self._socket.setblocking(False)
        #: Seconds between two signs of life that systemd wants: half of its limit; None where it wants none.
        self.watchdog_period_s = self._period(environment) if self._socket is not None else None

    @property
    def active(self) -> bool:
        """Whether somebody wants to be told."""
        return self._socket is not None

    def ready(self, status: str = "") -> bool:
        """Say that the start is over; return whether it was sent."""
        self._status = _one_line(status)
        return self._send("READY=1", f"STATUS={self._status}")

    def status(self, text: str) -> bool:
        """Say in one line how things are; return whether it was sent."""
        self._status = _one_line(text)
        return self._send(f"STATUS={self._status}")

    def watchdog(self) -> bool:
        """Say that all is well; systemd ends and starts the station again where this fails to come."""
        return self._send("WATCHDOG=1")

    def stopping(self) -> bool:
        """Say that the end has begun."""
        return self._send("STOPPING=1", "STATUS=stopping")

    def tick(self, stalled: Sequence[str]) -> None:
        """Say that all is well, unless something is stalled; for a `Watchdog`'s `on_look`, every `watchdog_period_s`.

        Args:
            stalled: names of threads; while there is one, systemd is told which, and not that all is well.
        """
        if stalled:
            if self._interrupted is None:
                self._interrupted = self._status
            text = _one_line("stalled: " + ", ".join(stalled))
            if text != self._status:
                self.status(text)
            return
        if self._interrupted is not None:
            self.status(self._interrupted)
            self._interrupted = None
        if self.watchdog_period_s is not None:
            self.watchdog()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _period(environment: Mapping[str, str]) -> float | None:
        """Return half of the time in which systemd wants to hear of us, in seconds; None where it does not."""
        limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        if not (limit.isascii() and limit.isdigit() and int(limit)) or (pid and pid != str(os.getpid())):
            return None
        return int(limit) / _MICROSECONDS / 2

    def _send(self, *lines: str) -> bool:
        sender = self._socket
        if sender is None:
            return False
        try:
            sender.sendto("\n".join(lines).encode(errors="backslashreplace"), self._address)
        except OSError:
            return False
        return True


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_STATUS]
