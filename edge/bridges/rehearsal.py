"""Commissioning: every signal moves once, and what the PLC does is compared with what it should do.

The station is played here, so that neither camera nor bundle is needed; the bridge is the real one.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edge.bridges.played import VERDICTS, PlayedStation
from edge.bridges.settings import PlcEntry
from edge.bridges.side import Side
from edge.bridges.tags import (
    INPUT_TAGS,
    OUTPUT_TAGS,
    CommandCode,
    CommandStatus,
    ErrorCode,
    Inputs,
    Outputs,
    Tag,
    VerdictCode,
)
from edge.inspection.result import Verdict

_CODES = {each: VerdictCode[each.name] for each in VERDICTS}
_BEATS = 3


class Record:
    """What both sides have shown so far; fed by the bridge's thread, read by another.

    Attributes:
        inputs, outputs: as they are now.
        connected: the PLC is read and written.
        problem: what the bridge said last.
    """

    def __init__(self) -> None:
        self.inputs, self.outputs = Inputs(), Outputs()
        self.connected = False
        self.problem = ""
        self.beats = 0
        self.longest_beat_s = 0.0
        self.acknowledged: list[tuple[int, int]] = []
        self.errors: list[int] = []
        self.commands: list[tuple[int, int]] = []
        self._shown: tuple[int, int] | None = None
        self._beat_at: float | None = None
        self._changed = threading.Condition()
        self._ended = False

    def feed(self, inputs: Inputs, outputs: Outputs, connected: bool) -> None:
        """Take what both sides show now."""
        with self._changed:
            before, said = self.inputs, self.outputs
            if connected and self.connected and inputs.heartbeat != before.heartbeat:
                now = time.monotonic()
                if self._beat_at is not None:
                    self.longest_beat_s = max(self.longest_beat_s, now - self._beat_at)
                self._beat_at = now
                self.beats += 1
            if inputs.result_ack and self._shown is not None:
                self.acknowledged.append(self._shown)
                self._shown = None
            if outputs.result_valid:
                self._shown = outputs.part_id, outputs.verdict
            if said.error and not outputs.error:
                self.errors.append(said.error_code)
            if said.command_echo and not outputs.command_echo:
                self.commands.append((said.command_echo, said.command_status))
            self.inputs, self.outputs, self.connected = inputs, outputs, connected
            self._changed.notify_all()

    def say(self, text: str) -> None:
        """Take a message of the bridge."""
        self.problem = text

    def end(self) -> None:
        """Note that nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition holds; return whether it does.  Also returns when nothing more comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or condition(), timeout_s)
            return condition()


class Step(NamedTuple):
    """One thing that the PLC is to do.

    Attributes:
        label: what is waited for, with the addresses.
        done: whether it has done it.
        seen: what is to be said then.
        refusal: what is wrong, with addresses and values; asked when the time is over.
        wrong: whether it has done something from which this cannot come any more.
    """

    label: str
    done: Callable[[], bool]
    seen: Callable[[], str]
    refusal: Callable[[], str]
    wrong: Callable[[], bool] = lambda: False


class Outcome(NamedTuple):
    """How a step went."""

    passed: bool
    text: str


class Rehearsal:
    """Runs against one PLC, from `__enter__` to `__exit__`.

    Args:
        entry: the PLC.
        timeout_s: how long the PLC, or who forces its signals by hand, may take for each step.
    """

    def __init__(self, entry: PlcEntry, timeout_s: float) -> None:
        self.record = Record()
        self._timeout_s = timeout_s
        # A person who sets signals by hand is not to be late; what is here for the station is not this one's.
        settings = msgspec.structs.replace(
            entry.settings, camera="", deadline_ms=1000 * (timeout_s + 1), trigger_timeout_ms=1000 * (timeout_s + 1)
        )
        self._entry = PlcEntry(settings, entry.protocol)
        self._inputs = {tag.field: tag for tag in INPUT_TAGS}
        self._outputs = {tag.field: tag for tag in OUTPUT_TAGS}
        self._folder = tempfile.TemporaryDirectory(prefix="redi-test-")

    def __enter__(self) -> Rehearsal:
        record = self.record
        self._station = PlayedStation(Path(self._folder.name))
        self.side = Side(
            self._entry,
            self._station.address,
            report=record.say,
            watch=lambda inputs, outputs: record.feed(inputs, outputs, self.side.connected),
        )
        self.side.start(record.end)
        return self

    def __exit__(self, *_: object) -> None:
        self.side.stop()
        self._station.close()
        self._folder.cleanup()

    def run(self) -> Iterator[Step | Outcome]:
        """Yield each step before it is waited for, then its outcome; the first that fails is the last.

        Raises:
            BridgeError: the PLC's side cannot be opened.
        """
        for step in self._steps():
            yield step
            self.record.wait(lambda step=step: step.done() or step.wrong(), self._timeout_s)  # type: ignore[misc]
            if self.side.error is not None:
                raise self.side.error
            passed = step.done()
            yield Outcome(passed, step.seen() if passed else step.refusal())
            if not passed:
                return

    def name(self, tag: Tag) -> str:
        """Return a signal's name and address."""
        return f"{tag.name} ({self._entry.protocol.address(self._entry.settings, tag)})"

    # The steps

    def _plc(self, field: str) -> str:
        return self.name(self._inputs[field])

    def _ours(self, field: str) -> str:
        return self.name(self._outputs[field])

    def _steps(self) -> Iterator[Step]:
        record = self.record
        yield Step(
            "the connection",
            lambda: record.connected,
            lambda: "the PLC is connected: its block can be read, and ours be written",
            lambda: record.problem or "the PLC has not connected",
        )
        if self._entry.settings.plc_heartbeat:
            yield self._heartbeat()
        for index, verdict in enumerate(VERDICTS):
            yield from self._part(index, verdict)
        yield self._trigger(len(VERDICTS))
        yield self._error()
        yield self._command()

    def _heartbeat(self) -> Step:
        record, name = self.record, self._plc("heartbeat")
        return Step(
            f"{name} to change",
            lambda: record.beats >= _BEATS,
            lambda: f"{name} changes, at the latest after {1000 * record.longest_beat_s:.0f} ms",
            lambda: f"{name} stands still at {record.inputs.heartbeat}: the PLC's program must count it up",
        )

    def _part(self, index: int, verdict: Verdict) -> Iterator[Step]:
        record, code = self.record, _CODES[verdict]
        yield self._trigger(index)
        number, _ = self._station.taken[index]
        trigger, ack, valid = self._plc("trigger"), self._plc("result_ack"), self._ours("result_valid")
        yield Step(
            f"{trigger} to be cleared, as {self._ours('trigger_ack')} is 1",
            lambda: not record.inputs.trigger or record.inputs.part_id != number,
            lambda: f"{trigger} was cleared",
            lambda: f"{trigger} is 1 though {self._ours('trigger_ack')} is {record.outputs.trigger_ack:d}",
        )
        what = f"{self._ours('part_id')} = {number} with {self._ours('verdict')} = {code:d} {verdict.value}"
        gate = "may let it pass" if verdict is Verdict.OK else "must reject it"

        def not_taken() -> str:
            if record.outputs.result_valid:
                return f"{ack} is {record.inputs.result_ack:d} though {valid} is 1, {what}"
            if record.inputs.result_ack:
                return f"{ack} is 1 though {valid} is 0: clear it, or no result can be shown"
            return f"{ack} never was 1 while {valid} was, {what}"

        yield Step(
            f"{ack}, as {valid} is 1, {what}",
            lambda: (number, int(code)) in record.acknowledged,
            lambda: f"{ack} took {what}: the gate {gate}",
            not_taken,
        )
        yield Step(
            f"{ack} to be cleared, as {valid} is 0",
            lambda: not record.inputs.result_ack or (number, int(code)) != record.acknowledged[-1],
            lambda: f"{ack} was cleared",
            lambda: f"{ack} is 1 though {valid} is {record.outputs.result_valid:d}",
        )

    def _trigger(self, index: int) -> Step:
        record, taken = self.record, self._station.taken
        trigger, part_id, encoder = self._plc("trigger"), self._plc("part_id"), self._plc("encoder")

        def wrong() -> bool:
            return record.inputs.trigger and record.inputs.part_id == 0

        def refusal() -> str:
            ready, error = f"{self._ours('ready')} is {record.outputs.ready:d}", record.outputs.error_code
            if wrong():
                return f"{part_id} is 0 though {trigger} is 1: count part ids from 1"
            if error:
                return f"{ready}: {self._ours('error_code')} is {error} {_words(ErrorCode(error))}, acknowledge it"
            return f"{trigger} is {record.inputs.trigger:d} though {ready}"

        return Step(
            f"{trigger} with a {part_id}",
            lambda: len(taken) > index,
            lambda: f"{trigger} with {part_id} = {taken[index][0]}, {encoder} = {taken[index][1]}",
            refusal,
            wrong,
        )

    def _error(self) -> Step:
        record, name = self.record, self._plc("error_ack")
        code = ErrorCode.TRIGGER_REFUSED
        what = f"{self._ours('error')} is 1 with {self._ours('error_code')} = {code:d} {_words(code)}"
        return Step(
            f"{name}, as {what}",
            lambda: code in record.errors,
            lambda: f"{name} acknowledged {what}",
            lambda: f"{name} is {record.inputs.error_ack:d} though {what}",
        )

    def _command(self) -> Step:
        record, name, echo = self.record, self._plc("command"), self._ours("command_echo")
        done = (int(CommandCode.RESET), int(CommandStatus.DONE))
        return Step(
            f"{name} 1 reset, which the PLC's program writes when it starts: start it anew",
            lambda: done in record.commands,
            lambda: f"{name} was 1 reset until {echo} was, then 0",
            lambda: f"{name} is {record.inputs.command}, {echo} is {record.outputs.command_echo}",
        )


def _words(code: ErrorCode) -> str:
    return code.name.lower().replace("_", " ")


def values(record: Record) -> Iterator[tuple[Tag, Any]]:
    """Yield every signal with its value now."""
    for tags, block in ((INPUT_TAGS, record.inputs), (OUTPUT_TAGS, record.outputs)):
        for tag in tags:
            yield tag, getattr(block, tag.field)
