"""The handshake with a PLC, whatever the protocol: pure, without input or output; the time is passed in.

    PLC      Trigger + PartId + Encoder ──┐               ┌── ResultAck ──┐
    station                    TriggerAck, Busy ── ResultValid + PartId + Verdict … ── ResultValid cleared

Several parts may wait for their verdicts at a time; results are shown one after the other, each until it is
acknowledged.  What holds whatever is lost, repeated, delayed or restarted:

- `ok` is shown only for a part whose own `ok` event came before its deadline, after the station had confirmed in time
  that it had taken the trigger (a trigger that was held up on the way would show the camera another part).
- Each trigger has a name of its own at the station, never used again: an old event is no part's verdict.
- When the deadline passes, what is shown or to be shown as `ok` becomes `late`.
- A PLC that is lost, and a reset, drop all parts: its next program may use the same part ids again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from edge.bridges.finding import Finding
from edge.bridges.tags import CommandCode, CommandStatus, ErrorCode, Inputs, Outputs, StateCode, VerdictCode


@dataclass(frozen=True)
class Timing:
    """How long what may take, in seconds.

    Attributes:
        deadline_s: from seeing a trigger to the verdict; beyond, it is `late`.
        trigger_timeout_s: from seeing a trigger to the station's confirming it; beyond, the part's verdict is `fault`.
        station_timeout_s: without a status of the station.
        plc_timeout_s: without a change of the PLC's heartbeat; None for a PLC without one.
        heartbeat_s: between changes of our heartbeat.
        max_parts: parts that may wait for their verdict, or for their result to be acknowledged.
    """

    deadline_s: float = 0.5
    trigger_timeout_s: float = 0.1
    station_timeout_s: float = 2.5
    plc_timeout_s: float | None = 1.0
    heartbeat_s: float = 0.25
    max_parts: int = 16


class AskStation(NamedTuple):
    """To be done: hand a trigger to the station, at once or never; `part` is the part's name there."""

    part: str
    encoder: int
    deadline_s: float


class SwitchRecipe(NamedTuple):
    """To be done: switch the station to a recipe; `serial` names this request in the answer."""

    serial: int
    number: int


Action = AskStation | SwitchRecipe


@dataclass(eq=False)
class _Part:
    number: int
    name: str
    confirm_by: float
    deadline: float
    confirmed: bool = False
    settled: bool = False
    finding: Finding | None = None


@dataclass
class _Results:
    """Results that wait to be shown, and the one that is."""

    waiting: deque[_Part] = field(default_factory=deque)
    shown: _Part | None = None


class Handshake:
    """One PLC's side of the handshake.

    Args:
        name: the PLC's; part of the names of its parts at the station.
        token: differs in every run of the bridge, so that no part's name is used twice.
        timing: how long what may take.
    """

    def __init__(self, name: str, token: str, timing: Timing) -> None:
        self.timing = timing
        self._prefix = f"{name}.{token}"
        self._count = 0
        self._parts: dict[str, _Part] = {}
        self._results = _Results()
        self._errors: list[ErrorCode] = []
        self._stopped = False
        # The station.
        self._heard: float | None = None
        self._running = self._halted = False
        # The PLC.
        self._inputs = Inputs()
        self._met = self._connected = self._plc_alive = False
        self._beat_at: float | None = None
        self._current: _Part | None = None
        # Commands.
        self._serial = 0
        self._switches: set[int] = set()
        self._command_serial: int | None = None
        self._echo, self._status = 0, CommandStatus.NONE
        # Our heartbeat.
        self._beat, self._beat_due = 0, 0.0

    # What happens at the PLC

    def read(self, inputs: Inputs, now: float, since: float | None = None) -> list[Action]:
        """Take what the PLC has written; return what is to be done.

        Args:
            inputs: all that it writes, as of one moment.
            now: this moment.
            since: when it was looked at last, where it is looked at regularly: a trigger may be as old as that.
        """
        before, first = self._inputs, not self._connected
        self._tick(now)
        if self.timing.plc_timeout_s is None:
            self._plc_alive = True
        elif self._met and inputs.heartbeat != before.heartbeat:
            self._plc_alive, self._beat_at = True, now
        self._inputs, self._connected, self._met = inputs, True, True
        actions = self._see_command(inputs)
        if inputs.error_ack and not before.error_ack and not first:
            self._errors = self._errors[1:]
        if inputs.result_ack:
            self._results.shown = None
        if inputs.trigger and first:
            # Since when it has been set nobody knows: the part may be gone, and this one another of the same id.
            self._refuse_trigger(inputs.part_id, ErrorCode.NOT_READY, now)
        elif inputs.trigger and not before.trigger:
            actions += self._see_trigger(inputs, now, now if since is None else since)
        self._show(now)
        return actions

    def plc_lost(self, now: float) -> None:
        """Note that the PLC cannot be read or written."""
        self._connected = False
        self._tick(now)

    # What happens at the station

    def station_alive(self, state: str, now: float) -> None:
        """Take a status of the station: `running`, or what else it says."""
        self._tick(now)
        self._heard, self._running, self._halted = now, state == "running", state == "stopped"

    def station_lost(self, now: float) -> None:
        """Note that the connection to the station is cut."""
        self._tick(now)
        self._lose_station()

    def trigger_taken(self, part: str, now: float) -> None:
        """Take the station's word that it has started to inspect a part."""
        self._tick(now)
        known = self._parts.get(part)
        if known is not None:
            known.confirmed = known.settled = True
            self._conclude(known)
        self._show(now)

    def trigger_refused(self, part: str, now: float) -> None:
        """Take the station's refusal to inspect a part, or that it could not be asked."""
        self._tick(now)
        known = self._parts.get(part)
        if known is not None and not known.confirmed:
            self._fail(known, VerdictCode.FAULT, ErrorCode.TRIGGER_REFUSED)
        self._show(now)

    def verdict(self, part: str, finding: Finding, now: float) -> None:
        """Take a part's event; what is no part of ours that waits is ignored."""
        self._tick(now)
        known = self._parts.get(part)
        if known is not None and known.finding is None:
            known.finding = finding
            self._conclude(known)
        self._show(now)

    def recipe_switched(self, serial: int, done: bool, now: float) -> None:
        """Take the answer to a `SwitchRecipe`."""
        self._tick(now)
        self._switches.discard(serial)
        if serial == self._command_serial:
            self._command_serial = None
            self._answer(CommandCode.RECIPE, CommandStatus.DONE if done else CommandStatus.REFUSED)

    def stop(self) -> None:
        """End: from now on the outputs say not ready, and show no result."""
        self._stopped = True
        self._drop()

    # What the PLC is to see

    def outputs(self, now: float) -> Outputs:
        """Return what the PLC is to see now."""
        self._tick(now)
        self._show(now)
        if now >= self._beat_due:
            self._beat, self._beat_due = (self._beat + 1) % 0x1_0000, now + self.timing.heartbeat_s
        ready, shown = self._able() and not self._inputs.trigger, self._results.shown
        finding = Finding(VerdictCode.NONE) if shown is None or shown.finding is None else shown.finding
        return Outputs(
            ready=ready,
            trigger_ack=self._inputs.trigger and self._current is not None and self._current.settled,
            busy=bool(self._parts),
            result_valid=shown is not None,
            error=bool(self._errors),
            heartbeat=self._beat,
            state=self._state(ready),
            error_code=self._errors[0] if self._errors else ErrorCode.NONE,
            command_echo=self._echo,
            command_status=self._status,
            part_id=0 if shown is None else shown.number,
            **finding._asdict(),
        )

    def due(self, now: float) -> float:
        """Return in how many seconds, at most, `outputs` must be asked again though nothing happens."""
        times = [self._beat_due]
        times += [part.deadline if part.confirmed else part.confirm_by for part in self._parts.values()]
        shown = self._results.shown
        if shown is not None and _is_ok(shown):
            times.append(shown.deadline)
        if self._station_alive() and self._heard is not None:
            times.append(self._heard + self.timing.station_timeout_s)
        if self._plc_alive and self._beat_at is not None and self.timing.plc_timeout_s is not None:
            times.append(self._beat_at + self.timing.plc_timeout_s)
        return max(0.0, min(times) - now)

    def _able(self) -> bool:
        """Whether a trigger that comes now is taken."""
        waiting = len(self._parts) + len(self._results.waiting) + (self._results.shown is not None)
        return (
            not self._stopped
            and self._station_alive()
            and self._connected
            and self._plc_alive
            and not self._errors
            and not self._switches
            and waiting < self.timing.max_parts
        )

    def _state(self, ready: bool) -> StateCode:
        if self._stopped:
            return StateCode.HALTED
        if self._errors:
            return StateCode.ERROR
        if not self._station_alive():
            return StateCode.HALTED if self._halted else StateCode.PREOPERATIONAL
        if self._parts:
            return StateCode.SINGLE_EXECUTION
        return StateCode.READY if ready else StateCode.INITIALIZED

    # Triggers

    def _see_trigger(self, inputs: Inputs, now: float, since: float) -> list[Action]:
        if inputs.part_id == 0 or self._twins(inputs.part_id):
            self._refuse_trigger(inputs.part_id, ErrorCode.PART_ID, now)
            return []
        if not self._able():
            self._refuse_trigger(inputs.part_id, ErrorCode.NOT_READY, now)
            return []
        if now > since + self.timing.trigger_timeout_s:
            self._refuse_trigger(inputs.part_id, ErrorCode.TRIGGER_UNCONFIRMED, now)
            return []
        part = self._current = self._new_part(inputs.part_id, now, since)
        self._parts[part.name] = part
        return [AskStation(part.name, inputs.encoder, self.timing.deadline_s)]

    def _new_part(self, number: int, now: float, since: float) -> _Part:
        self._count += 1
        name = f"{number}.{self._prefix}.{self._count}"
        return _Part(number, name, since + self.timing.trigger_timeout_s, now + self.timing.deadline_s)

    def _twins(self, number: int) -> list[_Part]:
        shown = [] if self._results.shown is None else [self._results.shown]
        return [part for part in [*self._parts.values(), *self._results.waiting, *shown] if part.number == number]

    def _refuse_trigger(self, number: int, error: ErrorCode, now: float) -> None:
        for twin in self._twins(number):
            # Two results of one id could be taken for each other: neither may be `ok`.
            self._fail(twin, VerdictCode.FAULT)
        part = self._current = self._new_part(number, now, now)
        part.settled = True
        self._hold(error)
        # There is no part 0 that a result could be of; and no more results wait than parts may.
        if number and len(self._results.waiting) < self.timing.max_parts:
            part.finding = Finding(VerdictCode.FAULT)
            self._results.waiting.append(part)

    # Verdicts

    def _conclude(self, part: _Part) -> None:
        if part.finding is not None and (part.confirmed or part.finding.verdict is not VerdictCode.OK):
            del self._parts[part.name]
            part.settled = True
            self._results.waiting.append(part)

    def _fail(self, part: _Part, verdict: VerdictCode, error: ErrorCode = ErrorCode.NONE) -> None:
        part.finding = Finding(verdict) if part.finding is None else part.finding._replace(verdict=verdict)
        part.settled = True
        if self._parts.pop(part.name, None) is not None:
            self._results.waiting.append(part)
        if error:
            self._hold(error)

    def _show(self, now: float) -> None:
        results = self._results
        # Not while the last result's acknowledgement is still set: it would be taken for this one's.
        free = results.shown is None and self._connected and not self._inputs.result_ack
        if free and results.waiting and not self._stopped:
            results.shown = results.waiting.popleft()
        if results.shown is not None and _is_ok(results.shown) and now > results.shown.deadline:
            self._fail(results.shown, VerdictCode.LATE)

    # Time, losses, errors, commands

    def _tick(self, now: float) -> None:
        for part in list(self._parts.values()):
            if now > part.deadline:
                self._fail(part, VerdictCode.LATE)
            elif not part.confirmed and now > part.confirm_by:
                self._fail(part, VerdictCode.FAULT, ErrorCode.TRIGGER_UNCONFIRMED)
        if self._heard is not None and now > self._heard + self.timing.station_timeout_s:
            self._lose_station()
        if self.timing.plc_timeout_s is None:
            lost = not self._connected
        else:
            lost = self._beat_at is None or now > self._beat_at + self.timing.plc_timeout_s
        if lost and self._plc_alive:
            self._plc_alive = False
            if self._drop():
                self._hold(ErrorCode.PARTS_DROPPED)

    def _station_alive(self) -> bool:
        return self._heard is not None and self._running

    def _lose_station(self) -> None:
        if self._station_alive():
            self._hold(ErrorCode.STATION_LOST)
        self._heard, self._running = None, False

    def _drop(self) -> bool:
        """Forget all parts and results; return whether there were any."""
        dropped = bool(self._parts or self._results.waiting or self._results.shown)
        self._parts.clear()
        self._results = _Results()
        self._current = None
        return dropped

    def _hold(self, error: ErrorCode) -> None:
        if error not in self._errors:
            self._errors.append(error)

    def _see_command(self, inputs: Inputs) -> list[Action]:
        if inputs.command == 0:
            self._command_serial, self._echo, self._status = None, 0, CommandStatus.NONE
        elif inputs.command == self._echo or self._command_serial is not None:
            pass
        elif inputs.command == CommandCode.RESET:
            self._drop()
            self._errors.clear()
            self._answer(CommandCode.RESET, CommandStatus.DONE)
        elif inputs.command == CommandCode.RECIPE:
            self._serial += 1
            self._command_serial = self._serial
            self._switches.add(self._serial)
            return [SwitchRecipe(self._serial, inputs.command_value)]
        else:
            self._answer(inputs.command, CommandStatus.REFUSED)
        return []

    def _answer(self, command: int, status: CommandStatus) -> None:
        self._echo, self._status = command, status
        if status is CommandStatus.REFUSED:
            self._hold(ErrorCode.COMMAND_REFUSED)


def _is_ok(part: _Part) -> bool:
    return part.finding is not None and part.finding.verdict is VerdictCode.OK
