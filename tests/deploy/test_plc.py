"""The example PLC program uses the signals of the tag list, with their types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.bridges.layout import INPUT_PLACES, OUTPUT_PLACES
from edge.bridges.protocols.modbus import PROTOCOL
from edge.bridges.tags import INPUT_TAGS, OUTPUT_TAGS, Tag

FOLDER = Path(__file__).parents[2] / "deploy" / "plc"
TEXT = (FOLDER / "redi_bridge.st").read_text(encoding="ascii")
CODE = re.sub(r"\(\*.*?\*\)", "", TEXT, flags=re.DOTALL)

BLOCKS = pytest.mark.parametrize(
    ("struct", "tags"), [("ReDiToStation", INPUT_TAGS), ("ReDiFromStation", OUTPUT_TAGS)], ids=["to", "from"]
)


def members(struct: str) -> list[tuple[str, str]]:
    body = re.search(rf"{struct} :\s+STRUCT(.*?)END_STRUCT", CODE, re.DOTALL)
    assert body
    return re.findall(r"(\w+) : (\w+);", body[1])


@BLOCKS
def test_a_structure_has_the_signals_in_their_order_and_types(struct: str, tags: tuple[Tag, ...]) -> None:
    assert members(struct) == [(tag.name, tag.type.value) for tag in tags]


@BLOCKS
def test_a_structure_lies_in_memory_as_the_block_does(struct: str, tags: tuple[Tag, ...]) -> None:
    places = INPUT_PLACES if tags is INPUT_TAGS else OUTPUT_PLACES
    settings = PROTOCOL.settings(name="plc", protocol="modbus")
    first = settings.from_plc if tags is INPUT_TAGS else settings.to_plc
    word, bit = 1, 0
    for (name, kind), place in zip(members(struct), places, strict=True):
        assert name == place.tag.name
        if kind == "BOOL":
            assert PROTOCOL.address(settings, place.tag) == f"holding register {first} bit {bit}"
            bit += 1
        else:
            assert PROTOCOL.address(settings, place.tag) == f"holding register {first + word}"
            word += 1 if kind == "UINT" else 2


def test_every_signal_that_the_program_uses_exists() -> None:
    for variable, tags in (("ToStation", INPUT_TAGS), ("FromStation", OUTPUT_TAGS)):
        used = set(re.findall(rf"(?<!\.)\b{variable}\.(\w+)", CODE))
        assert used
        assert used <= {tag.name for tag in tags}


def test_what_the_handshake_needs_is_used() -> None:
    assert set(re.findall(r"ToStation\.(\w+) :=", CODE)) == {
        tag.name for tag in INPUT_TAGS if tag.field != "command_value"
    }
    read = set(re.findall(r"FromStation\.(\w+)", CODE))
    assert read >= {"Heartbeat", "Ready", "TriggerAck", "ResultValid", "PartId", "Verdict", "Error", "CommandEcho"}


def test_every_begin_has_its_end() -> None:
    for word in ("IF", "FOR", "STRUCT", "TYPE", "VAR(?:_INPUT|_OUTPUT)?", "FUNCTION_BLOCK", "PROGRAM"):
        begins = len(re.findall(rf"(?<![_\w]){word}(?![_\w])", CODE))
        ends = len(re.findall(rf"(?<![_\w])END_{word.split('(')[0]}(?![_\w])", CODE))
        assert begins == ends > 0, word
