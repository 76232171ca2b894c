from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.bridges.base import transitions
from edge.bridges.finding import Finding
from edge.bridges.handshake import AskStation, Handshake, SwitchRecipe, Timing
from edge.bridges.tags import (
    RESULT_FIELDS,
    CommandStatus,
    ErrorCode,
    Inputs,
    Outputs,
    StateCode,
    VerdictCode,
)

TIMING = Timing(
    deadline_s=0.5, trigger_timeout_s=0.1, station_timeout_s=2.5, plc_timeout_s=1.0, heartbeat_s=0.25, max_parts=3
)
OK, NG = Finding(VerdictCode.OK, score=0.5), Finding(VerdictCode.NG, region_count=2, score=3.0)


@dataclass
class Line:
    """A PLC and a station by hand."""

    timing: Timing = TIMING
    now: float = 100.0
    inputs: Inputs = field(default_factory=Inputs)

    def __post_init__(self) -> None:
        self.handshake = Handshake("plc", "token", self.timing)

    def plc(self, **changes: Any) -> list[Any]:
        self.inputs = msgspec.structs.replace(self.inputs, **changes)
        return self.handshake.read(self.inputs, self.now)

    def beat(self) -> None:
        self.plc(heartbeat=(self.inputs.heartbeat + 1) % 65536)

    def wait(self, seconds: float, step: float = 0.2) -> None:
        """Let time pass, with both heartbeats."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            self.beat()
            self.handshake.station_alive("running", self.now)

    @property
    def seen(self) -> Outputs:
        return self.handshake.outputs(self.now)

    def trigger(self, number: int) -> str:
        (action,) = self.plc(trigger=True, part_id=number, encoder=7)
        assert isinstance(action, AskStation)
        assert action.encoder == 7
        return action.part

    def inspect(self, number: int, finding: Finding) -> str:
        part = self.trigger(number)
        self.handshake.trigger_taken(part, self.now)
        self.plc(trigger=False)
        self.handshake.verdict(part, finding, self.now)
        return part


@pytest.fixture
def line() -> Line:
    line = Line()
    line.plc()
    line.beat()
    line.handshake.station_alive("running", line.now)
    assert line.seen.ready
    return line


def test_a_part_goes_through(line: Line) -> None:
    assert line.seen.state == StateCode.READY
    part = line.trigger(11)
    assert not line.seen.trigger_ack
    assert line.seen.busy
    assert line.seen.state == StateCode.SINGLE_EXECUTION
    line.handshake.trigger_taken(part, line.now)
    assert line.seen.trigger_ack
    line.plc(trigger=False)
    assert not line.seen.trigger_ack
    assert not line.seen.result_valid
    line.handshake.verdict(part, NG, line.now)
    seen = line.seen
    assert (seen.result_valid, seen.part_id, seen.verdict, seen.region_count, seen.score) == (True, 11, 2, 2, 3.0)
    assert not seen.busy
    line.plc(result_ack=True)
    assert (line.seen.result_valid, line.seen.part_id, line.seen.verdict) == (False, 0, VerdictCode.NONE)
    line.plc(result_ack=False)
    assert line.seen.ready


def test_results_wait_for_each_other(line: Line) -> None:
    first = line.trigger(1)
    line.handshake.trigger_taken(first, line.now)
    line.plc(trigger=False)
    second = line.trigger(2)
    line.handshake.trigger_taken(second, line.now)
    line.handshake.verdict(second, OK, line.now)
    line.handshake.verdict(first, NG, line.now)
    assert (line.seen.part_id, line.seen.verdict) == (2, VerdictCode.OK)
    line.plc(result_ack=True)
    assert not line.seen.result_valid, "its acknowledgement would be taken for the next one's"
    line.plc(result_ack=False)
    assert (line.seen.part_id, line.seen.verdict) == (1, VerdictCode.NG)


def test_no_verdict_by_the_deadline_is_late(line: Line) -> None:
    part = line.trigger(5)
    line.handshake.trigger_taken(part, line.now)
    line.wait(0.51)
    assert (line.seen.part_id, line.seen.verdict) == (5, VerdictCode.LATE)
    line.handshake.verdict(part, OK, line.now)
    assert line.seen.verdict == VerdictCode.LATE


def test_an_ok_that_is_not_taken_until_the_deadline_becomes_late(line: Line) -> None:
    line.inspect(5, OK)
    assert line.seen.verdict == VerdictCode.OK
    assert line.handshake.due(line.now) <= 0.5
    line.wait(0.51)
    assert (line.seen.part_id, line.seen.verdict) == (5, VerdictCode.LATE)


def test_a_trigger_that_is_confirmed_late_is_a_fault(line: Line) -> None:
    part = line.trigger(5)
    line.handshake.verdict(part, OK, line.now)
    assert not line.seen.result_valid, "which part the camera saw is not certain yet"
    line.wait(0.11)
    line.handshake.trigger_taken(part, line.now)
    assert (line.seen.part_id, line.seen.verdict) == (5, VerdictCode.FAULT)
    assert line.seen.error_code == ErrorCode.TRIGGER_UNCONFIRMED
    assert line.seen.trigger_ack


def test_a_trigger_that_may_be_old_is_not_handed_on(line: Line) -> None:
    line.inputs = msgspec.structs.replace(line.inputs, trigger=True, part_id=5)
    assert line.handshake.read(line.inputs, line.now, line.now - 0.11) == []
    assert (line.seen.part_id, line.seen.verdict) == (5, VerdictCode.FAULT)
    assert line.seen.error_code == ErrorCode.TRIGGER_UNCONFIRMED


def test_errors_are_held_until_they_are_acknowledged_one_by_one(line: Line) -> None:
    assert line.plc(trigger=True, part_id=0) == []
    line.handshake.station_lost(line.now)
    assert (line.seen.error_code, line.seen.state) == (ErrorCode.PART_ID, StateCode.ERROR)
    line.plc(trigger=False)
    line.handshake.station_alive("running", line.now)
    assert not line.seen.ready
    line.plc(error_ack=True)
    line.plc(error_ack=True)
    assert line.seen.error_code == ErrorCode.STATION_LOST
    line.plc(error_ack=False)
    line.plc(error_ack=True)
    assert not line.seen.error
    assert line.seen.ready


@pytest.mark.parametrize("loss", ["cut", "silence", "stopped"])
def test_without_the_station_nothing_is_ready(line: Line, loss: str) -> None:
    if loss == "cut":
        line.handshake.station_lost(line.now)
    elif loss == "stopped":
        line.handshake.station_alive("stopped", line.now)
    else:
        assert line.handshake.due(line.now) <= 1.0
        for _ in range(13):
            line.now += 0.2
            line.beat()
    assert not line.seen.ready
    assert line.seen.state == (StateCode.HALTED if loss == "stopped" else StateCode.ERROR)
    assert line.plc(trigger=True, part_id=9) == []
    assert (line.seen.part_id, line.seen.verdict) == (9, VerdictCode.FAULT)


def test_a_lost_plc_finds_no_result_of_before(line: Line) -> None:
    line.inspect(5, OK)
    waiting = line.trigger(6)
    line.now += 1.1
    assert not line.seen.result_valid
    line.beat()
    line.handshake.trigger_taken(waiting, line.now)
    line.handshake.verdict(waiting, OK, line.now)
    assert not line.seen.result_valid
    assert line.seen.error_code == ErrorCode.PARTS_DROPPED


def test_a_trigger_that_was_set_before_we_came_is_a_fault() -> None:
    line = Line()
    line.handshake.station_alive("running", line.now)
    assert line.plc(trigger=True, part_id=4) == []
    assert (line.seen.part_id, line.seen.verdict, line.seen.trigger_ack) == (4, VerdictCode.FAULT, True)


def test_a_trigger_that_is_set_after_a_cut_may_be_another_parts(line: Line) -> None:
    part = line.trigger(4)
    line.handshake.plc_lost(line.now)
    assert not line.seen.ready
    assert line.plc() == []
    line.handshake.trigger_taken(part, line.now)
    line.handshake.verdict(part, OK, line.now)
    assert (line.seen.part_id, line.seen.verdict) == (4, VerdictCode.FAULT)


def test_a_part_survives_a_cut_to_the_plc(line: Line) -> None:
    part = line.trigger(4)
    line.handshake.trigger_taken(part, line.now)
    line.plc(trigger=False)
    line.handshake.plc_lost(line.now)
    line.handshake.verdict(part, OK, line.now)
    assert not line.seen.result_valid
    line.plc()
    assert (line.seen.part_id, line.seen.verdict) == (4, VerdictCode.OK)


def test_twins_are_faults_both(line: Line) -> None:
    line.inspect(4, OK)
    assert line.seen.verdict == VerdictCode.OK
    assert line.plc(trigger=True, part_id=4) == []
    assert (line.seen.part_id, line.seen.verdict) == (4, VerdictCode.FAULT)
    line.plc(result_ack=True)
    line.plc(result_ack=False)
    assert (line.seen.part_id, line.seen.verdict) == (4, VerdictCode.FAULT)
    assert line.seen.error_code == ErrorCode.PART_ID


def test_no_more_parts_than_may_wait(line: Line) -> None:
    for number in (1, 2, 3):
        assert line.seen.ready
        line.trigger(number)
        line.plc(trigger=False)
    assert not line.seen.ready
    assert line.plc(trigger=True, part_id=4) == []
    assert line.seen.error_code == ErrorCode.NOT_READY


def test_commands_are_echoed_and_cleared(line: Line) -> None:
    line.inspect(4, OK)
    line.plc(trigger=True, part_id=0)
    line.plc(command=1)
    seen = line.seen
    assert (seen.command_echo, seen.command_status, seen.error, seen.result_valid) == (1, 1, False, False)
    line.plc(command=0, trigger=False)
    assert (line.seen.command_echo, line.seen.command_status) == (0, CommandStatus.NONE)
    (action,) = line.plc(command=2, command_value=12)
    assert isinstance(action, SwitchRecipe)
    assert action.number == 12
    assert line.plc() == [], "once"
    assert not line.seen.ready
    line.handshake.recipe_switched(action.serial, True, line.now)
    assert (line.seen.command_echo, line.seen.command_status, line.seen.ready) == (2, CommandStatus.DONE, True)
    line.plc(command=0)
    line.plc(command=77)
    assert (line.seen.command_echo, line.seen.command_status) == (77, CommandStatus.REFUSED)
    assert line.seen.error_code == ErrorCode.COMMAND_REFUSED


def test_a_refused_trigger_and_an_end(line: Line) -> None:
    part = line.trigger(4)
    line.handshake.trigger_refused(part, line.now)
    assert (line.seen.part_id, line.seen.verdict) == (4, VerdictCode.FAULT)
    line.handshake.stop()
    assert (line.seen.ready, line.seen.result_valid, line.seen.state) == (False, False, StateCode.HALTED)


def test_heartbeat_counts_and_a_plc_without_one_is_there_while_connected() -> None:
    line = Line(Timing(plc_timeout_s=None))
    line.handshake.station_alive("running", line.now)
    first = line.seen.heartbeat
    assert not line.seen.ready
    line.plc()
    assert line.seen.ready
    assert line.seen.heartbeat == first
    line.now += 0.25
    assert line.seen.heartbeat == first + 1
    line.handshake.plc_lost(line.now)
    assert not line.seen.ready


@dataclass
class Asked:
    """What the oracle knows of one trigger that was handed on."""

    number: int
    at: float
    alive: bool = True
    taken_in_time: bool = False
    verdict: VerdictCode | None = None
    verdict_at: float = 0.0


class AnyOrder(RuleBasedStateMachine):
    """Messages lost, repeated, delayed and in any order, and a PLC that does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 10.0
        self.runs = 0
        self.inputs = Inputs()
        # Names of parts, of earlier runs too: their messages may still come.
        self.names: list[str] = []
        self.view = Outputs()

    @initialize()
    def start(self) -> None:
        self.restart(True)

    @rule(well=st.booleans())
    def restart(self, well: bool) -> None:
        self.runs += 1
        self.handshake = Handshake("plc", f"run{self.runs}", TIMING)
        self.asked: dict[str, Asked] = {}
        self.latest: dict[int, str | None] = {}
        self.beat_at: float | None = None
        self.status_at: float | None = None
        self.met = self.connected = False
        if well:
            self.all_is_well(0.0)

    @rule(seconds=st.sampled_from([0.03, 0.09, 0.11, 0.3, 0.51, 1.01, 2.6]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        trigger=st.booleans(),
        number=st.integers(0, 3),
        result_ack=st.booleans(),
        error_ack=st.booleans(),
        beats=st.booleans(),
        command=st.sampled_from([0, 0, 0, 1]),
    )
    def plc_is_read(
        self, trigger: bool, number: int, result_ack: bool, error_ack: bool, beats: bool, command: int
    ) -> None:
        heartbeat = (self.inputs.heartbeat + beats) % 65536
        rising = trigger and not (self.inputs.trigger and self.connected)
        inputs = Inputs(trigger, result_ack, error_ack, heartbeat, command, 0, number, 0)
        if self.plc_silent():
            self.forget()
        if beats and self.met:
            self.beat_at = self.now
        if command == 1 and self.handshake.outputs(self.now).command_echo != 1:
            self.forget()
        actions = self.handshake.read(inputs, self.now)
        self.inputs, self.met, self.connected = inputs, True, True
        if rising:
            # Unless the station was asked, nothing can be `ok` of this number.
            self.latest[number] = None
        for action in actions:
            assert isinstance(action, AskStation)
            assert action.part not in self.names
            self.asked[action.part] = Asked(number, self.now)
            self.latest[number] = action.part
            self.names.append(action.part)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3]))
    def all_is_well(self, seconds: float) -> None:
        self.now += seconds
        self.plc_is_read(self.inputs.trigger, self.inputs.part_id, self.inputs.result_ack, True, True, 0)
        self.plc_is_read(self.inputs.trigger, self.inputs.part_id, self.inputs.result_ack, False, True, 0)
        self.status("running")

    @rule(
        number=st.integers(1, 3),
        seconds=st.sampled_from([0.0, 0.0, 0.05]),
        words=st.lists(st.sampled_from(["taken", VerdictCode.OK, VerdictCode.OK, VerdictCode.NG]), max_size=3),
    )
    def part_comes(self, number: int, seconds: float, words: list[str | VerdictCode]) -> None:
        self.plc_is_read(False, number, True, True, True, 0)
        self.plc_is_read(True, number, False, False, True, 0)
        self.now += seconds
        for word in words:
            if self.names:
                self.deliver(self.names[-1], word)

    @rule()
    def plc_is_cut_off(self) -> None:
        if self.plc_silent():
            self.forget()
        self.handshake.plc_lost(self.now)
        self.connected = False

    @rule(state=st.sampled_from(["running", "running", "running", "stopped"]))
    def status(self, state: str) -> None:
        self.handshake.station_alive(state, self.now)
        self.status_at = self.now if state == "running" else None

    @rule()
    def station_is_lost(self) -> None:
        self.handshake.station_lost(self.now)
        self.status_at = None

    @precondition(lambda self: self.names)
    @rule(data=st.data(), what=st.sampled_from(["taken", "refused", VerdictCode.OK, VerdictCode.OK, VerdictCode.NG]))
    def message(self, data: st.DataObject, what: str | VerdictCode) -> None:
        """Of any part, of earlier runs too, any number of times."""
        self.deliver(data.draw(st.sampled_from(self.names[-4:])), what)

    def deliver(self, name: str, what: str | VerdictCode) -> None:
        if self.plc_silent():
            self.forget()
        asked = self.asked.get(name)
        if what == "taken":
            self.handshake.trigger_taken(name, self.now)
            if asked is not None and self.now <= asked.at + 0.1:
                asked.taken_in_time = True
        elif what == "refused":
            self.handshake.trigger_refused(name, self.now)
        else:
            assert isinstance(what, VerdictCode)
            self.handshake.verdict(name, Finding(what), self.now)
            if asked is not None and asked.verdict is None:
                asked.verdict, asked.verdict_at = what, self.now

    def plc_silent(self) -> bool:
        return self.beat_at is not None and self.now > self.beat_at + 1.0

    def forget(self) -> None:
        for asked in self.asked.values():
            asked.alive = False

    @invariant()
    def what_the_plc_sees_is_true(self) -> None:
        if not self.runs:
            return
        if self.plc_silent():
            self.forget()
        outputs = self.handshake.outputs(self.now)
        assert outputs.result_valid == (outputs.verdict != VerdictCode.NONE) == (outputs.part_id != 0)
        assert outputs.trigger_ack <= self.inputs.trigger
        assert self.handshake.due(self.now) >= 0
        if outputs.verdict == VerdictCode.OK:
            name = self.latest[outputs.part_id]
            assert name is not None
            asked = self.asked[name]
            assert asked.alive
            assert asked.taken_in_time
            assert asked.verdict is VerdictCode.OK
            assert asked.verdict_at <= asked.at + 0.5
            assert self.now <= asked.at + 0.5
        if outputs.ready:
            assert self.status_at is not None
            assert self.now <= self.status_at + 2.5
            assert self.beat_at is not None
            assert not self.plc_silent()
            assert not outputs.error
        for image in transitions(self.view, outputs):
            before = [getattr(self.view, name) for name in RESULT_FIELDS]
            after = [getattr(image, name) for name in RESULT_FIELDS]
            assert before == after or not (self.view.result_valid or image.result_valid)
            self.view = image
        assert self.view == outputs


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
