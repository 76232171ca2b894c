"""`bridge.toml`: which PLCs there are, and how to reach them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edge.bridges.base import PlcSettings, Protocol, find_protocol
from edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_EXAMPLE = "see docs/plc.md for an example"


class PlcEntry(NamedTuple):
    """One `[[plc]]` table."""

    settings: PlcSettings
    protocol: Protocol[Any]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    plc: list[dict[str, Any]]


def read_settings(path: Path) -> list[PlcEntry]:
    """Return the PLCs of a `bridge.toml`, at least one.

    Raises:
        UsageError: the file cannot be read, or a key has a wrong value: names the file and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        file = msgspec.convert(tomllib.loads(text), _File)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", _EXAMPLE) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", _EXAMPLE) from error
    entries = [_read_plc(path, number, table) for number, table in enumerate(file.plc, 1)]
    if not entries:
        raise UsageError(f"{path} has no PLC", "add a [[plc]] table, see docs/plc.md")
    for name, count in Counter(entry.settings.name for entry in entries).items():
        if count > 1:
            raise UsageError(f"{path}: {count} PLCs are named {name!r}", "give each a name of its own")
    return entries


def _read_plc(path: Path, number: int, table: dict[str, Any]) -> PlcEntry:
    where = f"{path}: [[plc]] number {number}"
    if isinstance(table.get("name"), str):
        where += f" ({table['name']})"
    name = table.get("protocol")
    if not isinstance(name, str):
        raise UsageError(f"{where}: the key protocol is missing", 'such as protocol = "modbus"')
    try:
        protocol = find_protocol(name)
        return PlcEntry(msgspec.convert(table, protocol.settings), protocol)
    except UsageError as error:
        raise UsageError(f"{where}: {error.problem}", error.hint) from error
    except msgspec.ValidationError as error:
        # `$.port` is how msgspec names the key.
        problem = str(error).replace("`$.", "`").replace(" - at `$`", "")
        raise UsageError(f"{where}: {problem}", "see docs/plc.md for the keys and their values") from error
