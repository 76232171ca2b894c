from __future__ import annotations

import math
import struct
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.bridges.layout import (
    INPUT_WORDS,
    OUTPUT_WORDS,
    PLACES,
    from_registers,
    pack,
    registers,
    unpack_inputs,
    unpack_outputs,
)
from edge.bridges.tags import INPUT_TAGS, OUTPUT_TAGS, RESULT_FIELDS, TAGS, Direction, Inputs, Outputs, Tag, TagType

_PYTHON = {TagType.BOOL: bool, TagType.UINT: int, TagType.UDINT: int, TagType.DINT: int, TagType.REAL: float}


def values_of(tag: Tag) -> st.SearchStrategy[Any]:
    if tag.type is TagType.BOOL:
        return st.booleans()
    if tag.type is TagType.REAL:
        return st.floats(width=32, allow_nan=False)
    return st.integers(*tag.type.limits)


def blocks(struct_type: type[msgspec.Struct], tags: tuple[Tag, ...]) -> st.SearchStrategy[Any]:
    return st.builds(struct_type, **{tag.field: values_of(tag) for tag in tags})


def test_every_field_is_a_tag_of_its_type() -> None:
    for struct_type, tags in ((Inputs, INPUT_TAGS), (Outputs, OUTPUT_TAGS)):
        hints = get_type_hints(struct_type)
        assert [tag.field for tag in tags] == list(hints)
        for tag in tags:
            assert hints[tag.field] is _PYTHON[tag.type], tag.name
            assert tag.meaning
            assert len({tag.name for tag in tags}) == len(tags)
    assert RESULT_FIELDS[0] == "part_id"
    assert {tag.direction for tag in TAGS} == set(Direction)


@given(inputs=blocks(Inputs, INPUT_TAGS), outputs=blocks(Outputs, OUTPUT_TAGS), low_word_first=st.booleans())
def test_blocks_come_back_as_they_went(inputs: Inputs, outputs: Outputs, low_word_first: bool) -> None:
    block = pack(inputs, low_word_first=low_word_first)
    assert len(block) == 2 * INPUT_WORDS
    assert unpack_inputs(from_registers(registers(block)), low_word_first=low_word_first) == inputs
    block = pack(outputs, low_word_first=low_word_first)
    assert len(block) == 2 * OUTPUT_WORDS
    assert unpack_outputs(block, low_word_first=low_word_first) == outputs


def test_each_tag_is_where_its_place_says() -> None:
    for tag, word, bit in PLACES:
        struct_type = Inputs if tag.direction is Direction.FROM_PLC else Outputs
        zero = struct_type(**dict.fromkeys(struct_type.__struct_fields__, 0))
        block = registers(pack(msgspec.structs.replace(zero, **{tag.field: 1})))
        if bit is not None:
            assert block[word] == 1 << bit
        elif tag.type is TagType.REAL:
            assert block[word : word + 2] == list(struct.unpack(">HH", struct.pack(">f", 1.0)))
        else:
            assert block[word + (tag.type is not TagType.UINT)] == 1
        assert sum(value != 0 for value in block) == 1


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        (Outputs(part_id=1 << 32), "PartId"),
        (Outputs(score=math.pi * 1e38 * 2), "Score"),
        (Outputs(verdict=-1), "Verdict"),
    ],
)
def test_what_does_not_fit_is_named(outputs: Outputs, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} cannot be"):
        pack(outputs)
