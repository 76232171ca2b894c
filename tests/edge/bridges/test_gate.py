from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bridges.gate import Gate

_TIMES = st.integers(0, 12).map(lambda number: number * 0.25)
_STEPS = st.lists(
    st.tuples(_TIMES, st.sampled_from(["part", "part", "pass", "pass", "drop"]), st.integers(1, 4)), max_size=20
)


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS, delay_s=_TIMES, pulse_s=st.none() | st.sampled_from([0.25, 1.0]))
def test_the_gate_opens_for_a_part_that_passes_and_for_none_after_it(
    steps: list[tuple[float, str, int]], delay_s: float, pulse_s: float | None
) -> None:
    gate, now = Gate(delay_s, pulse_s), 0.0
    # All that ever was, looked through from the start at each step.
    parts: list[tuple[int, float]] = []
    passing: set[int] = set()
    dropped: set[int] = set()
    for wait, what, back in steps:
        due = gate.due(now)
        before = gate.released(now)
        if due is None or due > wait:
            # Nothing changes by itself before it is due.
            assert gate.released(now + wait) == before
        now += wait
        if what == "part":
            parts.append((len(parts) + 1, now + delay_s))
            gate.part(len(parts), now)
        elif what == "drop":
            dropped.update(number for number, _ in parts)
            gate.reject_all()
        elif len(parts) >= back:
            passing.add(parts[-back][0])
            gate.passes(parts[-back][0])
        come = [part for part in parts if part[1] <= now and part[0] not in dropped]
        at_gate = max(come, key=lambda part: (part[1], part[0]), default=None)
        expected = at_gate is not None and at_gate[0] in passing and (pulse_s is None or now < at_gate[1] + pulse_s)
        assert gate.released(now) == expected
