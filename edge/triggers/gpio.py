"""Triggers that come as a signal at a GPIO line, such as a light barrier's, through the kernel's character device."""

from __future__ import annotations

import re
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edge.errors import CameraError, UsageError
from edge.parts import Parts, TriggerRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WRITTEN = re.compile(r"gpio:(?P<chip>/dev/gpiochip\d+|\d+):(?P<line>\d+)(?::(?P<edge>rising|falling))?")
# A contact that bounces longer is no light barrier.
_DEBOUNCE_MS = 2


@dataclass(frozen=True)
class GpioLine:
    """A line by its chip's device, its offset there, and the edge that is a trigger: `rising` or `falling`."""

    chip: str
    offset: int
    edge: str = "rising"

    @classmethod
    def parse(cls, text: str) -> GpioLine:
        """Return the line that `gpio:CHIP:LINE[:EDGE]` names.

        Raises:
            UsageError: it names none.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise UsageError(f"{text!r} names no GPIO line", "write gpio:CHIP:LINE[:rising|falling], such as gpio:0:17")
        chip = found["chip"] if found["chip"].startswith("/") else f"/dev/gpiochip{found['chip']}"
        return cls(chip, int(found["line"]), found["edge"] or "rising")


class EdgeRequest(Protocol):
    """The part of `gpiod.LineRequest` that is used."""

    def fileno(self) -> int:
        """Return what becomes readable when there are events."""
        ...

    def read_edge_events(self) -> Sequence[Any]:
        """Return the events that wait, each with `timestamp_ns` on the monotonic clock."""
        ...

    def release(self) -> None:
        """Give the line back."""
        ...


class GpioTrigger:
    """Opens a part at each signal, in a thread of its own.

    Its id is made of the camera's name and the time, see `Parts.trigger_timed`.

    Args:
        line: the line.
        camera: the camera's name.
        parts: where parts are opened.
        request: opens the line; `gpiod` by default.

    Raises:
        UsageError: gpiod is not installed.
        CameraError: the line cannot be used.
    """

    def __init__(
        self, line: GpioLine, camera: str, parts: Parts, *, request: Callable[[GpioLine], EdgeRequest] | None = None
    ) -> None:
        self._camera = camera
        self._parts = parts
        self._request = (request or open_line)(line)
        self._stop = threading.Event()
        #: Signals for which there was no room.
        self.refused = 0
        self._thread = threading.Thread(target=self._run, name=f"gpio-{camera}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the line back."""
        self._stop.set()
        self._thread.join()
        self._request.release()

    def __enter__(self) -> GpioTrigger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._request.fileno()], [], [], 0.25)
            for event in self._request.read_edge_events() if ready else ():
                age_ns = max(0, time.monotonic_ns() - event.timestamp_ns)
                try:
                    self._parts.trigger_timed(self._camera, time.time_ns() - age_ns, event.timestamp_ns)
                except TriggerRefusedError:
                    self.refused += 1


def open_line(line: GpioLine) -> EdgeRequest:
    """Ask the kernel for the events of a line.

    Raises:
        UsageError: gpiod is not installed.
        CameraError: the line cannot be used.
    """
    try:
        import gpiod
    except ImportError as error:
        raise UsageError("gpiod is not installed", "pip install 'redi-edge[gpio]'") from error
    from datetime import timedelta

    edge = gpiod.line.Edge.RISING if line.edge == "rising" else gpiod.line.Edge.FALLING
    settings = gpiod.LineSettings(
        direction=gpiod.line.Direction.INPUT,
        edge_detection=edge,
        debounce_period=timedelta(milliseconds=_DEBOUNCE_MS),
        event_clock=gpiod.line.Clock.MONOTONIC,
    )
    try:
        request: EdgeRequest = gpiod.request_lines(line.chip, consumer="redi-trigger", config={line.offset: settings})
    except (OSError, ValueError) as error:
        raise CameraError(
            f"GPIO line {line.offset} of {line.chip} cannot be used: {error}",
            "gpioinfo lists the lines; the user needs access to the device",
        ) from error
    return request
