"""`edge-doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from edge.cli import CommandParser, command, console, output_console
from edge.doctor import Finding, State, examine

_STYLES = {State.OK: "green", State.NOTE: "yellow", State.PROBLEM: "bold red"}

#: Columns; wider than any row.
_NO_FOLD = 4000

_EPILOG = """\
Each row is ok, a note (worth knowing; the portable runtime runs all the same) or a problem (it cannot run).  Nothing is
changed, and no camera is opened.

exit codes:
   0  the portable runtime can run here
   1  it cannot: at least one row is a problem
   2  arguments that make no sense
  70  internal error

example: edge-doctor --engine redi.plan
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Look at everything and print one row for each finding."""
    args = _parser().parse_args(argv)
    findings = examine(args.engine)
    problems = sum(finding.state is State.PROBLEM for finding in findings)
    if args.json:
        rows = [
            {
                "check": finding.check,
                "state": finding.state.value,
                "found": finding.found,
                "advice": finding.advice,
            }
            for finding in findings
        ]
        print(json.dumps({"ok": not problems, "checks": rows}))
    else:
        _show(findings)
        console.print(
            f"[bold red]{problems} problem{'s' if problems > 1 else ''}[/]: the portable runtime cannot run here"
            if problems
            else "the portable runtime can run here"
        )
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-doctor",
        description="Look at what a station needs on this machine: what is there, and what to do when it is not.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", type=Path, metavar="FILE", help="also see whether this bundle loads here")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout instead of the table")
    return parser


def _show(findings: Sequence[Finding]) -> None:
    # Long findings are folded on a terminal; elsewhere each keeps its line, for grep.
    terminal = os.isatty(1)
    table = Table(show_lines=terminal)
    for heading in ("", "check", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        state = f"[{_STYLES[finding.state]}]{finding.state.value}[/]"
        table.add_row(state, *map(escape, (finding.check, finding.found, finding.advice)))
    out = output_console(soft_wrap=not terminal)
    if not terminal:
        out.width = _NO_FOLD
    out.print(table)


if __name__ == "__main__":
    raise SystemExit(main(None))
