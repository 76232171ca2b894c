"""Damage to whole inputs."""

from __future__ import annotations

import random


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """A whole input with some bytes changed, cut out, doubled or put in."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        length = chance.choice((1, 1, 2, 8, 40))
        match chance.randrange(4):
            case 0:
                data[place : place + length] = chance.randbytes(length)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case _:
                data[place:place] = chance.randbytes(length)
    return bytes(data)
