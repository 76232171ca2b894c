"""The arguments that say which pictures a station keeps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from edge.archive_policy import keep_policy
from edge.cli import console
from edge.commands.journal_arguments import byte_count

if TYPE_CHECKING:
    from edge.archive import Archive
    from edge.supervision.pulse import Pulse

# As `edge.archive.DEFAULT_BUDGET_BYTES`, which takes OpenCV to load.
_BUDGET_BYTES = 10 << 30


def add_archive_arguments(parser: argparse._ActionsContainer) -> None:
    """Add `--archive`, what it keeps and how much."""
    parser.add_argument("--archive", type=Path, metavar="DIR", help="keep frames in DIR, as PNG with their event")
    parser.add_argument(
        "--archive-keep",
        type=keep_policy,
        default="ng",
        metavar="POLICY",
        help="which: all; ng, all that is not ok; borderline[:X], also ok whose score is within the share X of the "
        "threshold; sample:N, also every Nth ok (default: %(default)s)",
    )
    parser.add_argument(
        "--archive-budget",
        type=byte_count,
        default=_BUDGET_BYTES,
        metavar="BYTES",
        help="delete the oldest pictures beyond this size, such as 500M or 10G (default: 10G)",
    )


def open_archive(arguments: argparse.Namespace, pulse: Pulse | None = None) -> Archive | None:
    """Return the archive as the arguments want it, None where they want none.  The caller closes it."""
    if arguments.archive is None:
        return None
    from edge.archive import Archive

    return Archive(
        arguments.archive,
        arguments.archive_keep,
        budget_bytes=arguments.archive_budget,
        report=lambda message: console.print(f"[yellow]warning[/]: {escape(message)}"),
        pulse=pulse,
    )
