"""The arguments that say where a station keeps its events."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.markup import escape

from edge.cli import console, positive_number
from edge.events.journal import DEFAULT_DAYS, DEFAULT_SIZE_BYTES, Journal
from edge.events.journal_files import journal_folder
from edge.supervision.pulse import Pulse

_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SMALLEST_BYTES = 1 << 20


def add_journal_arguments(parser: argparse._ActionsContainer) -> None:
    """Add `--journal`, its bounds, and how it is written."""
    parser.add_argument(
        "--journal",
        metavar="DIR",
        help="events are kept in DIR/NAME before they are published, so that none is lost; "
        "none keeps none (default: $XDG_STATE_HOME/redi-edge)",
    )
    parser.add_argument(
        "--journal-size",
        type=byte_count,
        default=DEFAULT_SIZE_BYTES,
        metavar="BYTES",
        help="delete the oldest events beyond this size, such as 500M or 4G (default: 2G)",
    )
    parser.add_argument(
        "--journal-days",
        type=positive_number,
        default=DEFAULT_DAYS,
        metavar="DAYS",
        help="delete events older than this (default: %(default)g)",
    )
    parser.add_argument(
        "--journal-sync",
        choices=("full", "normal"),
        default="full",
        help="full: each event is on the disk before it is published; normal: faster, but a power cut may lose the "
        "last ones (default: %(default)s)",
    )


def open_journal(arguments: argparse.Namespace, camera: str, pulse: Pulse | None = None) -> Journal | None:
    """Return a camera's journal as the arguments want it, None where they want none.

    Raises:
        JournalError: its folder cannot be used.
    """
    if arguments.journal == "none":
        return None
    base = None if arguments.journal is None else Path(arguments.journal)
    return Journal(
        journal_folder(camera, base),
        synchronous=arguments.journal_sync,
        size_limit=arguments.journal_size,
        days=arguments.journal_days,
        report=lambda message: console.print(f"[yellow]warning[/]: {escape(message)}"),
        pulse=pulse,
    )


def byte_count(text: str) -> int:
    """Return the number of bytes that an argument such as 500M or 4G is; for argparse."""
    found = re.fullmatch(r"([0-9]{1,15})([kMGT]?)(?:i?B)?", text)
    if found is None or (count := int(found[1]) * _UNITS[found[2]]) < _SMALLEST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1M, such as 500M or 4G")
    return count
