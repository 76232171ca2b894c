"""A kernel's arguments as the driver takes them: one buffer, each argument at a multiple of its own alignment."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from edge.inspection.cuda.device import Argument


def pack(arguments: Sequence[Argument]) -> bytes:
    """Return the arguments' bytes as they are now, laid out as a C structure's fields, less the padding at its end."""
    packed = bytearray()
    for argument in arguments:
        packed += bytes(-len(packed) % ctypes.alignment(argument))
        packed += bytes(argument)
    return bytes(packed)
