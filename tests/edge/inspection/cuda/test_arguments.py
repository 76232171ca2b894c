"""A kernel's arguments lie where a C compiler would put them."""

from __future__ import annotations

import ctypes

from hypothesis import given
from hypothesis import strategies as st

from edge.inspection.cuda.arguments import pack
from edge.inspection.library import AreaBounds, Axis, Colour

KINDS = [ctypes.c_uint8, ctypes.c_int16, ctypes.c_int32, ctypes.c_float, ctypes.c_int64, ctypes.c_void_p]
STRUCTURES = [AreaBounds, Axis, Colour]


@given(kinds=st.lists(st.sampled_from([*KINDS, *STRUCTURES]), max_size=12), fill=st.randoms(use_true_random=False))
def test_arguments_are_packed_as_a_structure(kinds, fill):
    arguments = [kind.from_buffer_copy(fill.randbytes(ctypes.sizeof(kind))) for kind in kinds]

    class Together(ctypes.Structure):
        _fields_ = tuple((f"_{at}", kind) for at, kind in enumerate(kinds))

    together = Together()
    for at, argument in enumerate(arguments):
        ctypes.memmove(
            ctypes.addressof(together) + getattr(Together, f"_{at}").offset, bytes(argument), len(bytes(argument))
        )
    packed = pack(arguments)
    assert bytes(together)[: len(packed)] == packed
    assert not any(bytes(together)[len(packed) :])
    assert len(bytes(together)) - len(packed) < 8


def test_values_are_those_at_the_time_of_the_call():
    axis = Axis(1, 2, 3)
    packed = pack([ctypes.c_int32(1), axis])
    axis.taps = 9
    assert packed == bytes([1, *[0] * 7, 1, *[0] * 7, 2, *[0] * 7, 3, *[0] * 7])
