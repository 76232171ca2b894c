"""A station that is killed at any moment: every part that it accepted has exactly one verdict."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from edge.events.schema import Event
from edge.inspection.result import Verdict
from tests.edge.events.killed import Killer
from tests.edge.faults.line import EdgeRun, Log, Plc, kept
from tests.tiny_bundle import TinyBundle

KILLS = 52
ENDED_WITHOUT = "the station ended before it had a verdict"


def check(log: Log, accepted: dict[str, int], folder: Path) -> dict[str, Event]:
    """Check that each part has one verdict, that of its own frame, and that the journal says the same."""
    events = log.wait_for(accepted)
    log.check()
    assert set(events) == set(accepted)
    assert {part: event.encoder for part, event in events.items()} == accepted
    in_journal = {seq: msgspec.msgpack.decode(header, type=Event) for seq, header in kept(folder).items()}
    assert in_journal == {event.seq: event for event in log.events}
    return events


@pytest.mark.slow
def test_a_station_killed_52_times_gives_every_part_exactly_one_verdict(
    tiny: TinyBundle, killer: Killer, quick_folder: Path
) -> None:
    chance = random.Random(5)
    endpoint = f"ipc://{quick_folder / 'events'}"
    job = {
        "role": "line", "folder": str(quick_folder / "journal"), "endpoint": endpoint, "bundle": str(tiny.path),
        "pause_s": 0.004,
    }  # fmt: skip
    plcs = [Plc(endpoint, first=number, step=2, pause_s=0.004) for number in (1, 2)]
    with Log(endpoint, quick_folder / "cursor", restart=50) as log:
        with ExitStack() as asking:
            for plc in plcs:
                asking.enter_context(plc)
            for _ in range(KILLS):
                # While it starts, or after so many verdicts; and then at any moment.
                starting = chance.random() < 0.25
                steps = 0 if starting else chance.randint(1, 8)
                killer.run(**job, steps=steps, then_s=chance.uniform(0, 0.2 if starting else 0.01))
            killer.begin(**job, steps=10**9)
        accepted = {part: number for plc in plcs for part, number in plc.accepted.items()}
        log.wait_for(accepted)
        killer.end()
        events = check(log, accepted, quick_folder / "journal")
        assert log.starts > 1
    assert len({event.boot_id for event in events.values()}) > KILLS / 2
    unfinished = [event for event in events.values() if event.verdict is Verdict.FAULT]
    assert unfinished
    assert {event.reason for event in unfinished} == {ENDED_WITHOUT}
    for event in events.values():
        if event.verdict is not Verdict.FAULT:
            assert event.encoder is not None
            assert event.verdict is (Verdict.NG if event.encoder % 2 else Verdict.OK)


@pytest.mark.slow
def test_edge_run_itself_killed_twice(tiny: TinyBundle, quick_folder: Path) -> None:
    endpoint = f"ipc://{quick_folder / 'events'}"
    options = {
        "camera": "sim:index=encoder,width=64,height=64", "engine": tiny.path, "publish": endpoint, "threads": 1,
        "trigger": "request", "journal": quick_folder,
    }  # fmt: skip
    with Log(endpoint, quick_folder / "cursor") as log, Plc(endpoint, pause_s=0.005) as plc:
        for count in (5, 15):
            with EdgeRun(**options) as station:
                log.wait(lambda count=count: len(log.events) > count, "an event")
                threading.Event().wait(random.Random(count).uniform(0, 0.02))
                station.kill()
        with EdgeRun(**options) as station:
            log.wait(lambda: len(log.events) > 30, "an event")
            plc.__exit__(None, None, None)
            log.wait_for(plc.accepted)
            station.stop()
        events = check(log, plc.accepted, quick_folder / "cam0")
    for event in events.values():
        source = f"sim/0/{event.encoder:06d}" if event.verdict is not Verdict.FAULT else ""
        assert event.source == source or event.reason == ENDED_WITHOUT
