"""edge-bridge tags: the list of signals, with their addresses in a protocol."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from edge.bridges.base import PlcSettings, Protocol, find_protocol, protocol_names
from edge.bridges.settings import PlcEntry, read_settings
from edge.bridges.tags import TAGS
from edge.cli import CommandParser, output_console
from edge.errors import UsageError

if TYPE_CHECKING:
    from typing import Any

    _Commands = argparse._SubParsersAction[CommandParser]

COLUMNS = ("name", "written by", "address", "type", "unit", "meaning")

_EPILOG = """\
The addresses are those of the protocol's defaults, or with --config those of one of its PLCs.

examples: edge-bridge tags --protocol modbus --csv > tags.csv
          edge-bridge tags --config bridge.toml --plc line1
"""


def add_tags_command(commands: _Commands) -> None:
    """Add `tags`."""
    parser = commands.add_parser(
        "tags",
        help="print the list of signals: addresses, types, scaling, meaning",
        description="Print the list of signals: addresses, types, scaling, meaning.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--protocol", choices=protocol_names(), help="with this protocol's default addresses")
    which.add_argument("--config", type=Path, metavar="FILE", help="with the addresses of a PLC of this bridge.toml")
    parser.add_argument("--plc", metavar="NAME", help="which of them (default: the only one)")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def _run(arguments: argparse.Namespace) -> int:
    protocol: Protocol[Any]
    settings: PlcSettings
    if arguments.config is None:
        if arguments.plc is not None:
            raise UsageError("--plc is for --config", "leave it out")
        protocol = find_protocol(arguments.protocol)
        settings = protocol.settings(name="plc", protocol=arguments.protocol)
    else:
        settings, protocol = find_plc(arguments.config, arguments.plc)
    rows = tag_rows(protocol, settings)
    if arguments.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        return 0
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*map(escape, row))
    output_console(soft_wrap=False).print(table)
    return 0


def find_plc(config: Path, name: str | None) -> PlcEntry:
    """Return one PLC of a `bridge.toml`; its only one where `name` is None.

    Raises:
        UsageError: the file is wrong, or the PLC is not in it.
    """
    entries = read_settings(config)
    names = ", ".join(entry.settings.name for entry in entries)
    for entry in entries:
        if entry.settings.name == name or (name is None and len(entries) == 1):
            return entry
    if name is None:
        raise UsageError(f"{config} has several PLCs: {names}", "say which one: --plc NAME")
    raise UsageError(f"{config} has no PLC {name!r}", f"it has: {names}")


def tag_rows(protocol: Protocol[Any], settings: PlcSettings) -> list[tuple[str, ...]]:
    """Return one row of `COLUMNS` for each signal."""
    return [
        (
            tag.name,
            tag.direction.value.split()[0],
            protocol.address(settings, tag),
            tag.type.value,
            tag.signal.unit,
            tag.meaning,
        )
        for tag in TAGS
    ]
