"""Which part is at the reject gate when, and whether it passes; pure, the time is passed in."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass


@dataclass(eq=False)
class _Part:
    number: int
    begins: float
    passes: bool = False


class Gate:
    """The parts on their way to the gate.

    Args:
        delay_s: from a part's trigger until it is at the gate.
        pulse_s: how long it is there; None: until the next part is.
    """

    def __init__(self, delay_s: float, pulse_s: float | None) -> None:
        self._delay_s, self._pulse_s = delay_s, pulse_s
        self._parts: list[_Part] = []

    def part(self, number: int, triggered: float) -> None:
        """Note a part; it is rejected unless `passes` is called."""
        insort(self._parts, _Part(number, triggered + self._delay_s), key=lambda part: part.begins)

    def passes(self, number: int) -> None:
        """Let a part pass; one that is not known, or not any more, does not."""
        for part in self._parts:
            if part.number == number:
                part.passes = True

    def reject_all(self) -> None:
        """Let none of the parts pass that are known by now, whatever is said later."""
        self._parts.clear()

    def released(self, now: float) -> bool:
        """Return whether the part that is at the gate may pass; False where there is none."""
        while len(self._parts) > 1 and self._parts[1].begins <= now:
            del self._parts[0]
        if not self._parts or self._parts[0].begins > now:
            return False
        part = self._parts[0]
        return part.passes and (self._pulse_s is None or now < part.begins + self._pulse_s)

    def due(self, now: float) -> float | None:
        """Return in how many seconds `released` may change by itself; None: it does not."""
        times = [part.begins for part in self._parts]
        if self._pulse_s is not None:
            times += [begins + self._pulse_s for begins in times]
        return min((at - now for at in times if at > now), default=None)
