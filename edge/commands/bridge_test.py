"""edge-bridge test: walk through the signals with a PLC, at commissioning."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edge.bridges.rehearsal import Outcome, Rehearsal, Step, values
from edge.bridges.tags import Direction
from edge.cli import CommandParser, output_console, positive_number
from edge.commands.bridge_tags import find_plc

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[CommandParser]

_FAILED = 1

_EPILOG = """\
The station is played: no camera is needed, and nobody looks at parts.  Keep products away from the gate: it lets one
part pass.  Each verdict is shown once, then an error; every step waits for the PLC's program, or for you to force the
signal by hand.  No other edge-bridge may be connected to this PLC.

exit codes: as edge-bridge --help says; 1 where the PLC did not answer as it should
"""


def add_test_command(commands: _Commands) -> None:
    """Add `test`."""
    parser = commands.add_parser(
        "test",
        help="walk through the signals with a PLC, at commissioning",
        description="Walk through the signals with a PLC, at commissioning.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("--config", type=Path, metavar="FILE", required=True, help="which PLCs there are: bridge.toml")
    parser.add_argument("--plc", metavar="NAME", help="which of them (default: the only one)")
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=60.0,
        metavar="SECONDS",
        help="how long the PLC may take for each step (default: %(default)g)",
    )


def _run(arguments: argparse.Namespace) -> int:
    entry = find_plc(arguments.config, arguments.plc)
    console = output_console()
    console.print(
        f"{entry.settings.name} over {entry.settings.protocol}: the station is played, keep products away from the gate"
    )
    with Rehearsal(entry, arguments.timeout) as rehearsal:
        passed = _watch(rehearsal, console) if console.is_terminal else _tell(rehearsal, console)
    console.print("all signals work" if passed else "stopped at the first signal that does not work")
    return 0 if passed else _FAILED


def _tell(rehearsal: Rehearsal, console: Console) -> bool:
    """Print one line for each step."""
    passed = True
    for each in rehearsal.run():
        if isinstance(each, Outcome):
            passed = each.passed
            console.print(_line(each))
    return passed


def _watch(rehearsal: Rehearsal, console: Console) -> bool:
    """Print the same lines over a live view of all signals."""
    passed, waited = True, ""

    def view() -> RenderableType:
        return Group(_signals(rehearsal), Text(f"waiting for {waited}", overflow="fold") if waited else Text())

    with Live(get_renderable=view, console=console, transient=True) as live:
        for each in rehearsal.run():
            if isinstance(each, Step):
                waited = each.label
            else:
                passed, waited = each.passed, ""
                live.console.print(_line(each))
    return passed


def _line(outcome: Outcome) -> str:
    word = "[green]ok[/]    " if outcome.passed else "[bold red]failed[/]"
    return f"{word}  {escape(outcome.text)}"


def _signals(rehearsal: Rehearsal) -> Table:
    table = Table("the PLC writes", "", "the bridge writes", "")
    sides: dict[Direction, list[tuple[str, str]]] = {each: [] for each in Direction}
    for tag, value in values(rehearsal.record):
        shown = f"{value:g}" if isinstance(value, float) else str(int(value))
        sides[tag.direction].append((escape(rehearsal.name(tag)), shown))
    theirs, ours = sides[Direction.FROM_PLC], sides[Direction.TO_PLC]
    for index in range(max(len(theirs), len(ours))):
        left = theirs[index] if index < len(theirs) else ("", "")
        right = ours[index] if index < len(ours) else ("", "")
        table.add_row(*left, *right)
    return table
