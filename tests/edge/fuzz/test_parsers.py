"""Parsers refuse what is not theirs, whatever it is: no crash, no hang, no growing memory.

`long_run.py` does the same for as long as one likes.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import io
import json
import math
import random
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.commands.run_arguments import build_parser
from edge.config import read_station_file
from edge.errors import UsageError
from tests.edge.fuzz.mutation import mutated
from tests.edge.fuzz.targets import STATION_FILE, TARGETS, named, options, seeds

SEEDS = seeds()
# A hundred times what any input takes.
HANG_S = 10.0
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# Nested without end, counts without end, numbers without end.
HOSTILE = (
    b"", b"\x00", b"\x91" * 100_000, b"\xdc\xff\xff" * 1000, b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"[" * 100_000, b"a=" + b"[" * 100_000, b"a=" + b"{a=" * 50_000, b"a = " + b"9" * 100_000, b"a = 1e" + b"9" * 100,
    b"\xff\xfe" * 100, b"[[camera]]\n" * 10_000, b"\x00" + b'{"a":' * 50_000, b"PK\x03\x04" + bytes(1000),
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A parser that does not come back fails its test, with a traceback of where it is."""

    def stuck(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {HANG_S:g} s")

    before = signal.signal(signal.SIGVTALRM, stuck)
    signal.setitimer(signal.ITIMER_VIRTUAL, 6 * HANG_S)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_inputs_are_refused(target: str, number: int) -> None:
    TARGETS[target](HOSTILE[number])


@pytest.mark.parametrize("target", TARGETS)
@QUICK
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@QUICK
@given(which=st.integers(0, 99), seed=st.integers(0, 2**32))
def test_damaged_inputs_are_read_or_refused(target: str, which: int, seed: int) -> None:
    found = SEEDS[target]
    TARGETS[target](mutated(found[which % len(found)], random.Random(seed)))


@pytest.mark.parametrize("target", TARGETS)
def test_memory_does_not_grow(target: str) -> None:
    chance = random.Random(4)
    inputs = [mutated(chance.choice(SEEDS[target]), chance) for _ in range(25)]

    def go_round() -> int:
        for data in inputs:
            TARGETS[target](data)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        go_round()
        first = go_round()
        growth = [go_round() - first for _ in range(4)]
    finally:
        tracemalloc.stop()
    # Inputs have some 300 bytes and more each: one round's, kept, would show.  What the interpreter caches varies.
    assert min(growth) < 20_000
    assert growth[-1] - growth[0] < 20_000


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), WORDS, st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9), max_size=2), st.datetimes(),
)  # fmt: skip
CAMERAS = st.fixed_dictionaries(
    {"source": st.one_of(WORDS, VALUES)},
    optional={
        "name": st.one_of(st.sampled_from(["a", "b", "c/d", ""]), WORDS),
        "trigger": st.one_of(st.sampled_from(["none", "request", "camera", "gpio:/dev/gpiochip0:4", "gpio:"]), WORDS),
        "deadline-ms": VALUES,
        "slots": VALUES,
        "count": VALUES,
        "frame-timeout": VALUES,
        "colour": VALUES,
    },
)


def toml(value: object) -> str:
    """A value as TOML; a JSON string, and an array of numbers, are TOML too."""
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {each}" for key, each in value.items()) + "}"
    return json.dumps(value)


@settings(QUICK, max_examples=80)
@given(st.dictionaries(st.sampled_from([*options(), "camera", "unknown"]), VALUES, max_size=4), st.lists(CAMERAS))
def test_files_of_any_keys_and_values(
    tmp_path: Path, table: dict[str, object], cameras: list[dict[str, object]]
) -> None:
    """What is accepted says what was written, and `edge-run` can parse it or refuses it by itself."""
    lines = [f"{key} = {toml(value)}" for key, value in table.items()]
    if "camera" not in table:
        for camera in cameras:
            lines += ["[[camera]]", *(f"{key} = {toml(value)}" for key, value in camera.items())]
    path = tmp_path / "station.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        found = read_station_file(path, options())
    except UsageError:
        return
    assert "unknown" not in table
    assert [camera.source for camera in found.cameras] == [camera["source"] for camera in cameras]
    written = {key: value for key, value in table.items() if value is not False and key != "camera"}
    assert {word[2:].partition("=")[0] for word in found.words} == set(written)
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        build_parser().parse_args(found.words)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_taken(target: str) -> None:
    """What is mutated is whole: damaged inputs would else never get past the first check."""
    for seed in SEEDS[target]:
        TARGETS[target](seed)
    with contextlib.ExitStack() as stack:
        if target == "configuration":
            path = stack.enter_context(named(STATION_FILE.encode()))
            found = read_station_file(path, options())
            assert [camera.name for camera in found.cameras] == ["left", "right"]
            assert found.words == ["--engine=redi.plan", "--publish=ipc:///run/redi/events", "--threads=2", "--follow"]
