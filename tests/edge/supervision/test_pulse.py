from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from edge.supervision.pulse import Change, Watchdog

LIMIT_S = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run_until(dog: Watchdog, clock: Clock, until: float) -> list[Change]:
    """Let time pass as a watchdog that runs would see it."""
    found = []
    while clock.now < until:
        clock.now = min(until, clock.now + 1.0)
        found += dog.look()
    return found


def test_silence_beyond_what_is_allowed_is_a_stall_and_its_end_is_told(clock: Clock) -> None:
    dog = Watchdog(clock=clock)
    fast = dog.watch("fast", allowed_s=2.5)
    dog.watch("slow", allowed_s=30.0)
    assert run_until(dog, clock, 102.0) == []
    fast.beat()
    assert run_until(dog, clock, 104.0) == []
    (change,) = run_until(dog, clock, 110.0)
    assert (change.name, change.stalled, change.silent_s) == ("fast", True, 3.0)
    assert change.describe == "stalled: fast, silent for 3.0 s"
    assert dog.threads() == {"fast": True, "slow": False}
    assert dog.stalled() == ["fast"]
    fast.beat()
    (change,) = dog.look()
    assert (change.stalled, change.describe) == (False, "recovered: fast")
    assert dog.stalled() == []


def test_a_thread_that_never_beats_is_stalled_too(clock: Clock) -> None:
    dog = Watchdog(clock=clock)
    dog.watch("never", allowed_s=5.0)
    assert [change.name for change in run_until(dog, clock, 106.0)] == ["never"]


def test_who_is_idle_is_not_stalled_until_it_works_again(clock: Clock) -> None:
    dog = Watchdog(clock=clock)
    pulse = dog.watch("writer", allowed_s=5.0)
    pulse.idle()
    assert run_until(dog, clock, 1000.0) == []
    pulse.beat()
    assert run_until(dog, clock, 1005.0) == []
    assert [change.name for change in run_until(dog, clock, 1006.0)] == ["writer"]
    pulse.idle()
    assert [change.stalled for change in dog.look()] == [False]


def test_time_in_which_the_watchdog_did_not_run_either_is_forgiven(clock: Clock) -> None:
    dog = Watchdog(clock=clock)
    pulse = dog.watch("line", allowed_s=5.0)
    pulse.beat()
    # The machine sleeps for an hour, twice.
    for until in (3700.0, 7300.0):
        clock.now = until
        assert dog.look() == []
    # What comes after counts.
    assert [change.name for change in run_until(dog, clock, 7310.0)] == ["line"]
    pulse.beat()
    assert [change.stalled for change in dog.look()] == [False]
    assert [change.stalled for change in run_until(dog, clock, clock.now + 6.0)] == [True]


def test_only_critical_threads_keep_systemd_from_hearing_that_all_is_well(clock: Clock) -> None:
    dog = Watchdog(clock=clock)
    dog.watch("archive", allowed_s=1.0, critical=False)
    capture = dog.watch("capture", allowed_s=1.0)
    run_until(dog, clock, 103.0)
    assert (dog.stalled(), dog.stalled(critical=True)) == (["archive", "capture"], ["capture"])
    dog.forget(capture)
    assert (dog.stalled(), dog.stalled(critical=True)) == (["archive"], [])


def test_its_thread_tells_stalls_and_goes_on_when_a_listener_fails() -> None:
    told: list[Change] = []
    looks: list[Sequence[str]] = []
    seen, back = threading.Event(), threading.Event()

    def on_change(change: Change) -> None:
        told.append(change)
        (seen if change.stalled else back).set()
        raise ValueError("a listener's own trouble")

    def on_look(stalled: Sequence[str]) -> None:
        looks.append(stalled)
        raise ValueError("likewise")

    with Watchdog(on_change=on_change, on_look=on_look, period_s=0.01) as dog:
        pulse = dog.watch("capture", allowed_s=0.05)
        assert seen.wait(LIMIT_S)
        pulse.idle()
        assert back.wait(LIMIT_S)
    assert [change.stalled for change in told] == [True, False]
    assert ["capture"] in looks
    assert threading.current_thread() in threading.enumerate()
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_a_watchdog_that_never_started_can_be_closed() -> None:
    Watchdog().close()
