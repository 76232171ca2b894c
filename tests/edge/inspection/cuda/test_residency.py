from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.inspection.cuda.residency import Move, Residency


@given(st.data(), st.integers(1, 8), st.integers(0, 8))
def test_the_entries_used_last_are_resident(data: st.DataObject, entries: int, places: int) -> None:
    residency = Residency(entries, places)
    # The oracle: every entry by its last use, the unused ones in order before the first.
    last_use = {entry: entry - entries for entry in range(entries)}
    resident = set(range(min(entries, places)))
    moving: int | None = None
    hits = misses = promotions = 0
    for time in range(data.draw(st.integers(0, 40))):
        if moving is not None and data.draw(st.booleans()):
            assert residency.finish().entry == moving
            resident.add(moving)
            last_use[moving] = max(last_use[moving], time)
            moving, promotions = None, promotions + 1
            continue
        entry = data.draw(st.integers(0, entries - 1))
        move = residency.use(entry)
        last_use[entry] = time
        if entry in resident:
            hits += 1
            assert move is None
        else:
            misses += 1
            if moving is not None or not resident:
                assert move is None
            else:
                assert move is not None
                assert move.entry == entry
                assert move.evicted == min(resident, key=lambda each: last_use[each])
                resident.remove(move.evicted)
                moving = entry
        assert residency.resident.keys() == resident
        taken = [*residency.resident.values(), *([] if residency.moving is None else [residency.moving.place])]
        assert sorted(taken) == list(range(min(entries, places)))
    assert (residency.hits, residency.misses, residency.promotions) == (hits, misses, promotions)


def test_a_move_takes_the_place_of_the_least_recently_used() -> None:
    residency = Residency(4, 2)
    residency.use(0)
    assert residency.use(3) == Move(3, 1, 1)
    assert residency.use(2) is None, "one moves at a time"
    assert residency.use(3) is None
    assert residency.misses == 3, "what moves is not there yet"
    residency.finish()
    assert residency.resident == {0: 0, 3: 1}


def test_what_is_no_entry_is_refused() -> None:
    with pytest.raises(IndexError, match="entry -1 of 3"):
        Residency(3, 1).use(-1)
    with pytest.raises(IndexError, match="entry 3 of 3"):
        Residency(3, 1).use(3)
    with pytest.raises(RuntimeError):
        Residency(3, 1).finish()
    with pytest.raises(ValueError, match="0 entries"):
        Residency(0, 1)
