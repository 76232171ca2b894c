"""`docs/plc.md` says what the code says."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.bridges.base import PlcSettings, find_protocol
from edge.bridges.layout import PLACES
from edge.bridges.settings import read_settings
from edge.bridges.tags import TAGS, CommandCode, CommandStatus, Direction, ErrorCode, StateCode, VerdictCode
from edge.commands.bridge import main

TEXT = (Path(__file__).parents[3] / "docs" / "plc.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """A heading's text, up to the next heading of its level or above."""
    level, rest = re.findall(rf"^(#+) {re.escape(title)}\n(.*)", TEXT, re.DOTALL | re.MULTILINE)[0]
    return str(re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0])


def rows(text: str, header: str) -> list[list[str]]:
    """The rows of the table that begins with this header's first cell."""
    lines = text[text.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(
    ("title", "direction"), [("The PLC writes", Direction.FROM_PLC), ("The bridge writes", Direction.TO_PLC)]
)
def test_signals_are_those_of_the_code(title: str, direction: Direction) -> None:
    expected = [
        [
            f"`{tag.name}`",
            tag.type.value,
            f"{word}" if bit is None else f"{word}, bit {bit}",
            tag.signal.unit,
            tag.meaning,
        ]
        for tag, word, bit in PLACES
        if tag.direction is direction
    ]
    assert rows(section(title), "signal") == expected


def test_addresses_are_those_of_the_code() -> None:
    own = {"mqtt": {"station": "STATION", "camera": "CAMERA", "commands": True}}
    columns = []
    for name in ("modbus", "s7", "opcua", "mqtt"):
        protocol = find_protocol(name)
        settings = protocol.settings(name="plc", protocol=name, **own.get(name, {}))
        columns.append([protocol.address(settings, tag).removeprefix("redi/STATION/CAMERA/") for tag in TAGS])
    writers = {Direction.FROM_PLC: "PLC", Direction.TO_PLC: "bridge"}
    expected = [
        [f"`{tag.name}`", writers[tag.direction], *addresses]
        for tag, addresses in zip(TAGS, zip(*columns, strict=True), strict=True)
    ]
    assert rows(section("Addresses"), "signal") == expected


@pytest.mark.parametrize(
    ("title", "header", "codes"),
    [
        ("Verdict", "code | name", VerdictCode),
        ("State", "code | name", StateCode),
        ("ErrorCode", "code | name", ErrorCode),
        ("Command", "code | name", CommandCode),
        ("Command", "code | CommandStatus", CommandStatus),
    ],
)
def test_codes_are_those_of_the_code(title: str, header: str, codes: type[IntEnum]) -> None:
    found = [(int(row[0]), row[1]) for row in rows(section(title), header)]
    assert found == [(code.value, code.name.lower().replace("_", " ")) for code in codes]


def keys(settings: type[PlcSettings]) -> dict[str, str]:
    return {
        f"`{field.name}`": "" if field.required else f"`{written(field)}`" for field in msgspec.structs.fields(settings)
    }


def written(field: msgspec.structs.FieldInfo) -> str:
    """A default as TOML has it."""
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return msgspec.json.encode(value).decode()


def test_common_keys_and_their_defaults_are_those_of_the_code() -> None:
    found = {row[0]: row[1] for row in rows(section("bridge.toml"), "key")}
    assert found == keys(PlcSettings)


@pytest.mark.parametrize(
    ("protocol", "title"),
    [("modbus", "Modbus TCP"), ("s7", "S7"), ("gpio", "Digital output"), ("mqtt", "MQTT"), ("opcua", "OPC UA")],
)
def test_a_protocols_keys_and_their_defaults_are_those_of_the_code(protocol: str, title: str) -> None:
    common = keys(PlcSettings)
    expected = {key: value for key, value in keys(find_protocol(protocol).settings).items() if key not in common}
    assert {row[0]: row[1] for row in rows(section(title), "key")} == expected


def test_the_example_is_a_bridge_toml(tmp_path: Path) -> None:
    begin = TEXT.index("    [[plc]]")
    path = tmp_path / "bridge.toml"
    path.write_text(TEXT[begin : TEXT.index("\n\n", begin)].replace("\n    ", "\n").lstrip())
    (entry,) = read_settings(path)
    assert (entry.settings.name, entry.settings.deadline_ms) == ("line1", 300)


def test_exit_codes_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = re.findall(r"^ +(\d+)  ", capsys.readouterr().out.split("exit codes:")[1], re.MULTILINE)
    assert re.findall(r"(?:^|· )(\d+) ", section("Exit codes of edge-bridge"), re.MULTILINE) == told
