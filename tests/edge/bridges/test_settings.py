from __future__ import annotations

from pathlib import Path

import pytest

from edge.bridges.layout import INPUT_WORDS
from edge.bridges.protocols.modbus import ModbusSettings
from edge.bridges.settings import read_settings
from edge.errors import UsageError

GOOD = """
[[plc]]
name = "line1"
protocol = "modbus"
host = "10.0.0.5"
recipes = { 3 = "/plans/cap.plan" }

[[plc]]
name = "line2"
protocol = "modbus"
role = "server"
word_order = "low-first"
"""


def test_a_file_of_two_plcs(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(GOOD)
    first, second = (entry.settings for entry in read_settings(path))
    assert isinstance(first, ModbusSettings)
    assert isinstance(second, ModbusSettings)
    assert (first.name, first.host, first.role, first.recipes) == (
        "line1",
        "10.0.0.5",
        "client",
        {"3": "/plans/cap.plan"},
    )
    assert (second.role, second.low_word_first) == ("server", True)


ONE = '[[plc]]\nname = "line1"\nprotocol = "modbus"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plc = ", ["bridge.toml"]),
        ("", ["plc"]),
        ("plc = []", ["no PLC"]),
        ("[other]\n[[plc]]", ["other"]),
        ('[[plc]]\nname = "line1"', ["number 1 (line1)", "protocol"]),
        ('[[plc]]\nname = "line1"\nprotocol = "profibus"', ["(line1)", "'profibus'", "modbus"]),
        ('[[plc]]\nprotocol = "modbus"', ["number 1", "`name`"]),
        ('[[plc]]\nname = "a b"\nprotocol = "modbus"', ["`name`"]),
        (ONE + "port = 70000", ["(line1)", "`port`", "65535"]),
        (ONE + "prot = 1", ["`prot`"]),
        (ONE + 'role = "slave"', ["`role`", "slave"]),
        (ONE + "deadline_ms = 0", ["`deadline_ms`"]),
        (ONE + f"to_plc = 5\nfrom_plc = {6 - INPUT_WORDS + 5}", ["overlap", "to_plc = 5"]),
        (ONE + ONE, ["2 PLCs are named 'line1'"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        read_settings(path)
    assert str(path) in raised.value.problem
    for word in words:
        assert word in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read"):
        read_settings(tmp_path / "none.toml")
