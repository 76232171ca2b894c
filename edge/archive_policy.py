"""Which frames the archive keeps."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from edge.events.schema import Event
from edge.inspection.result import Verdict

#: `ok` parts whose score lies within this share of the threshold are borderline, where nothing else is said.
DEFAULT_MARGIN = 0.2


@dataclass(frozen=True)
class KeepPolicy:
    """Keeps all that is not `ok`, and of the `ok` those near the threshold, or every so many, or all.

    Attributes:
        margin: keeps an `ok` whose score is at least `threshold * (1 - margin)`; None for none of them.
        every: keeps each camera's first `ok`, and every so many after it; 0 for none of them.
    """

    margin: float | None = None
    every: int = 0

    def wants(self, event: Event, number: int) -> bool:
        """Whether the event's frame is to be kept.

        Args:
            event: any.
            number: how many `ok` of the camera came before it.
        """
        if event.verdict is not Verdict.OK:
            return True
        if self.every and number % self.every == 0:
            return True
        if self.margin is None or event.score is None or event.threshold is None:
            return False
        return event.score >= event.threshold * (1 - self.margin)


def keep_policy(text: str) -> KeepPolicy:
    """Return the policy that an argument names: `all`, `ng`, `borderline[:X]` or `sample:N`; for argparse."""
    name, colon, value = text.partition(":")
    if name == "all" and not colon:
        return KeepPolicy(every=1)
    if name == "ng" and not colon:
        return KeepPolicy()
    if name == "borderline" and (margin := _share(value) if colon else DEFAULT_MARGIN) is not None:
        return KeepPolicy(margin=margin)
    if name == "sample" and value.isascii() and value.isdigit() and len(value) <= 9 and int(value):
        return KeepPolicy(every=int(value))
    raise argparse.ArgumentTypeError(
        f"{text!r} is none of all, ng, borderline (or borderline:0.1, within 10 % of the threshold), sample:N"
    )


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    return value if 0 < value <= 1 else None
