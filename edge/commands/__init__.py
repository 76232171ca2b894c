"""Console commands: argument parsing and printing, no logic of their own."""

from __future__ import annotations

import sys
from types import TracebackType


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# Ctrl-C while a command's own modules are still being loaded, before `edge.cli.command` can catch it.
sys.excepthook = _show_uncaught
