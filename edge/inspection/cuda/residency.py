"""Which entries of a cache lie in fast memory: the policy alone, without any memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple


class Move(NamedTuple):
    """`entry` is to be copied to `place`, where `evicted` has been until now."""

    entry: int
    place: int
    evicted: int


class Residency:
    """Keeps the entries used last in the places that there are; one entry moves at a time.

    An entry that moves is not resident yet, and the one that it takes the place of is no more: `use`, then where it
    returns a move, the copy, then `finish`.  At the start the first entries are resident.

    Args:
        entries: how many there are.
        places: how many of them can be resident, from 0.

    Attributes:
        hits: uses of resident entries.
        misses: uses of others.
        promotions: finished moves.
    """

    def __init__(self, entries: int, places: int) -> None:
        if entries < 1 or places < 0:
            raise ValueError(f"{entries} entries and {places} places")
        self.entries = entries
        self.hits = self.misses = self.promotions = 0
        # From the one whose last use is longest ago to the one used last.
        self._places = OrderedDict((entry, entry) for entry in range(min(entries, places)))
        self._moving: Move | None = None

    @property
    def count(self) -> int:
        """How many entries are resident; may be asked for by any thread."""
        return len(self._places)

    @property
    def resident(self) -> dict[int, int]:
        """The place of each resident entry."""
        return dict(self._places)

    @property
    def moving(self) -> Move | None:
        """The move that has begun and not been finished."""
        return self._moving

    def use(self, entry: int) -> Move | None:
        """Count a use; return the move to make now, if any.

        Raises:
            IndexError: there is no such entry.
        """
        if not 0 <= entry < self.entries:
            raise IndexError(f"entry {entry} of {self.entries}")
        if entry in self._places:
            self.hits += 1
            self._places.move_to_end(entry)
            return None
        self.misses += 1
        if self._moving is not None or not self._places:
            return None
        evicted, place = self._places.popitem(last=False)
        self._moving = Move(entry, place, evicted)
        return self._moving

    def finish(self) -> Move:
        """Make the moving entry a resident one, the one used last, and return its move."""
        move, self._moving = self._moving, None
        if move is None:
            raise RuntimeError("nothing moves")
        self._places[move.entry] = move.place
        self.promotions += 1
        return move
