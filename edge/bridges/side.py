"""One PLC's side of the bridge: station, handshake and PLC together, in a thread of its own.

So a PLC that hangs delays no other.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from edge.bridges.base import EventPlc, Plc, PlcLostError, PlcSettings, transitions
from edge.bridges.finding import finding_of
from edge.bridges.handshake import Action, AskStation, Handshake, SwitchRecipe, Timing
from edge.bridges.settings import PlcEntry
from edge.bridges.tags import Inputs, Outputs
from edge.bridges.waker import Waker
from edge.errors import JournalError
from edge.events.client import ControlClient, read_result
from edge.events.codec import EventMessage, StatusMessage
from edge.events.control import control_endpoint
from edge.events.cursor import FileCursor
from edge.events.durable import DurableSubscriber
from edge.events.follow import Gap
from edge.events.requests import Reply, RequestError, Switch, Switched, Trigger, Triggered
from edge.events.security import ClientKeys

# Before a PLC that was lost is tried again.
_PAUSE_S = 0.5
# To learn that the station's connection is gone, and that the bridge ends.
_LONGEST_WAIT_S = 0.1
# A new bundle is loaded and its golden frames are scored.
_SWITCH_TIMEOUT_S = 120.0
# Messages that are taken before the PLC is looked at again.
_BURST = 100


class StationAddress:
    """Where the station is, and how to be let in.

    Args:
        events: where it publishes.
        control: where it answers requests; by default the next port, or `PATH.control`.
        keys: for a station on TCP that admits clients by key.

    Raises:
        PublishError: an endpoint is invalid.
    """

    def __init__(self, events: str, control: str | None = None, keys: ClientKeys | None = None) -> None:
        self.events = events
        self.control = control or control_endpoint(events)
        self.keys = keys


class Side:
    """Runs one PLC's handshake until it is stopped.

    Args:
        entry: the PLC.
        station: where the station is.
        cursor: file that keeps how far a PLC that is told every event has been told.
        report: called with messages for people, from this side's thread.
        watch: called in this side's thread with what both sides see, whenever that changes.

    Attributes:
        error: why the side ended before it was stopped; None while all is well.
    """

    def __init__(
        self,
        entry: PlcEntry,
        station: StationAddress,
        *,
        cursor: Path | None = None,
        report: Callable[[str], None] | None = None,
        watch: Callable[[Inputs, Outputs], None] | None = None,
    ) -> None:
        self.settings = settings = entry.settings
        self.error: BaseException | None = None
        self._station, self._cursor = station, cursor
        self._report, self._watch = report, watch
        self._waker = Waker()
        self._stopping = False
        self.plc: Plc = entry.protocol.connect(settings, self._waker.wake)
        self.plc.report = self._say
        self._handshake = Handshake(settings.name, secrets.token_hex(4), timing_of(settings))
        self._inputs = Inputs()
        self._seen = Outputs()
        self._unsure = True
        self._open = self._connected = self._untold = False
        # The last event of each camera that was handed on in this step; they and those before may not have arrived.
        self._handed: dict[str, EventMessage] = {}
        self._read_at: float | None = None
        self._retry_at = 0.0
        self._problem = ""
        self._asked: dict[int, Action] = {}
        self._switch_until = 0.0
        self._ended: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._run, name=f"plc-{settings.name}", daemon=True)

    def start(self, ended: Callable[[], None]) -> None:
        """Begin; `ended` is called, from this side's thread, when it ends."""
        self._ended = ended
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the PLC was read and written when that was last tried."""
        return self._open and not self._unsure

    def stop(self) -> None:
        """Tell the PLC that we are not ready any more, and end."""
        self._stopping = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._waker.close()

    # The thread

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                stack.callback(self.plc.close)
                self._client = stack.enter_context(ControlClient(self._station.control, keys=self._station.keys))
                store = None
                if self._cursor is not None and isinstance(self.plc, EventPlc):
                    store = _open_cursor(self._cursor)
                    stack.callback(store.close)
                self._store = store
                self._subscriber = self._subscribe()
                stack.callback(lambda: self._subscriber.close())
                stack.callback(self._say_goodbye)
                while not self._stopping:
                    self._step()
        except BaseException as error:  # noqa: BLE001  whoever waits for this thread raises it
            self.error = error
        finally:
            self._ended()

    def _subscribe(self) -> DurableSubscriber:
        subscriber = DurableSubscriber(
            self._station.events,
            control=self._station.control,
            cursor=self._store,
            camera=self.settings.camera or None,
            # An event from before was published for no trigger of ours.
            start="now",
            keys=self._station.keys,
        )
        subscriber.wake_on(self._waker.descriptor)
        subscriber.wake_on(self._client.socket)
        subscriber.wake_on(self._client.monitor)
        return subscriber

    def _step(self) -> None:
        message = self._subscriber.receive(self._patience())
        self._waker.clear()
        for _ in range(_BURST):
            if message is None:
                break
            self._take(message)
            message = self._subscriber.receive(0.0)
        if message is not None:
            self._take(message)
        self._hear_answers()
        if self._connected and not self._subscriber.connected:
            self._handshake.station_lost(time.monotonic())
        self._connected = self._subscriber.connected
        self._exchange()
        self._settle()

    def _patience(self) -> float:
        now = time.monotonic()
        wait = min(_LONGEST_WAIT_S, self._handshake.due(now))
        if not self._open:
            return min(wait, max(0.0, self._retry_at - now))
        return min(wait, self.settings.poll_ms / 1000) if self.plc.polled else wait

    # The station

    def _take(self, message: EventMessage | StatusMessage | Gap) -> None:
        now = time.monotonic()
        if isinstance(message, StatusMessage):
            # While it is behind, a verdict would stand in line behind old events.
            if not self._subscriber.behind:
                self._handshake.station_alive(message.status.state, now)
        elif isinstance(message, EventMessage):
            if message.event.part_id is not None:
                self._handshake.verdict(message.event.part_id, finding_of(message.event), now)
            self._tell(message)
        else:
            self._say(f"events of {message.camera} cannot be had: {message.reason}")

    def _tell(self, message: EventMessage) -> None:
        if not isinstance(self.plc, EventPlc):
            return
        if self._untold or not self._open:
            self._untold = True
            return
        self._handed[message.event.camera] = message
        try:
            self.plc.event(message.event)
        except PlcLostError as error:
            self._lose(error)

    def _settle(self) -> None:
        """Wait until the events that were handed on have arrived, all of them in one go."""
        if not self._handed or not isinstance(self.plc, EventPlc):
            return
        try:
            self.plc.settle()
        except PlcLostError as error:
            self._lose(error)
        else:
            for message in self._handed.values():
                self._subscriber.ack(message)
            self._handed.clear()

    def _do(self, action: Action, now: float) -> None:
        if isinstance(action, AskStation):
            request = Trigger(
                action.part, self.settings.camera, action.encoder, deadline_ms=max(1e-3, action.deadline_s * 1000)
            )
            number = self._client.send("trigger", request)
            if number is None:
                self._say("a trigger cannot be handed on: the station is not connected")
                self._handshake.trigger_refused(action.part, now)
                return
        else:
            bundle = self.settings.recipes.get(str(action.number))
            number = None if bundle is None else self._client.send("switch", Switch(bundle, self.settings.camera))
            if number is None:
                why = "is not in the key recipes" if bundle is None else "cannot be asked for: there is no station"
                self._say(f"recipe {action.number} {why}")
                self._handshake.recipe_switched(action.serial, False, now)
                return
            self._switch_until = now + _SWITCH_TIMEOUT_S
        self._asked[number] = action

    def _hear_answers(self) -> None:
        while (reply := self._client.receive(0.0)) is not None:
            action = self._asked.pop(reply.id, None)
            if action is not None:
                self._hear(reply, action)
        now = time.monotonic()
        cut_off = self._client.was_cut_off()
        for number, action in list(self._asked.items()):
            if isinstance(action, SwitchRecipe):
                if cut_off or now > self._switch_until:
                    del self._asked[number]
                    self._say(f"no answer to recipe {action.number}")
                    self._handshake.recipe_switched(action.serial, False, now)
            elif cut_off:
                # Asked again, the station would inspect whatever is in front of the camera by then.
                del self._asked[number]
                self._handshake.trigger_refused(action.part, now)

    def _hear(self, reply: Reply, action: Action) -> None:
        now = time.monotonic()
        try:
            if isinstance(action, SwitchRecipe):
                read_result(reply, Switched)
                self._handshake.recipe_switched(action.serial, True, now)
            elif read_result(reply, Triggered).part_id == action.part:
                self._handshake.trigger_taken(action.part, now)
        except RequestError as error:
            if isinstance(action, SwitchRecipe):
                self._say(f"the station refuses recipe {action.number}: {error.problem}")
                self._handshake.recipe_switched(action.serial, False, now)
            else:
                self._say(f"the station refuses part {action.part}: {error.problem}")
                self._handshake.trigger_refused(action.part, now)

    # The PLC

    def _exchange(self) -> None:
        """Show the PLC what there is, see what it has written, do that, and show what comes of it."""
        now = time.monotonic()
        if not self._open and now < self._retry_at:
            return
        try:
            if not self._open:
                self.plc.open()
                self._open, self._unsure, self._read_at = True, True, None
                if self._untold:
                    # From the first one on that it was not told.
                    self._subscriber.close()
                    self._subscriber, self._untold, self._connected = self._subscribe(), False, False
            else:
                self._show()
            now = time.monotonic()
            before, self._read_at = self._read_at, now
            self._inputs = self.plc.read()
            now = time.monotonic()
            for action in self._handshake.read(self._inputs, now, before if self.plc.polled else None):
                self._do(action, now)
            self._show()
        except PlcLostError as error:
            self._lose(error)
        else:
            if self._problem:
                self._problem = ""
                self._say("the PLC is connected again")
        if self._watch is not None:
            self._watch(self._inputs, self._seen)

    def _show(self) -> None:
        wanted = self._handshake.outputs(time.monotonic())
        images = transitions(self._seen, wanted) or ([wanted] if self._unsure else [])
        for image in images:
            if image.result_valid:
                # If writing fails, the PLC has this image or the last, which has the same result, not yet valid.
                self._seen = image
            self.plc.write(image)
            self._seen = image
            if self._watch is not None:
                self._watch(self._inputs, image)
        self._unsure = False

    def _lose(self, error: PlcLostError) -> None:
        now = time.monotonic()
        self.plc.close()
        self._open, self._retry_at = False, now + _PAUSE_S
        if self._handed:
            # They may not have arrived.
            self._untold = True
            self._handed.clear()
        self._handshake.plc_lost(now)
        if str(error) != self._problem:
            self._problem = str(error)
            self._say(self._problem)

    def _say_goodbye(self) -> None:
        self._handshake.stop()
        if self._open:
            try:
                self._show()
            except PlcLostError as error:
                self._say(f"the PLC was not told that the bridge ends: {error}")

    def _say(self, text: str) -> None:
        if self._report is not None:
            self._report(f"{self.settings.name}: {text}")


def _open_cursor(path: Path) -> FileCursor:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"{path.parent} cannot be made: {error.strerror or error}", "name a folder with --cursors"
        ) from error
    return FileCursor(path, sync=False)


def timing_of(settings: PlcSettings) -> Timing:
    """Return a PLC's timing in seconds."""
    return Timing(
        deadline_s=settings.deadline_ms / 1000,
        trigger_timeout_s=settings.trigger_timeout_ms / 1000,
        station_timeout_s=settings.station_timeout_ms / 1000,
        plc_timeout_s=settings.plc_timeout_ms / 1000 if settings.plc_heartbeat else None,
        heartbeat_s=settings.heartbeat_ms / 1000,
        max_parts=settings.max_parts,
    )


def _nothing() -> None:
    """Do nothing."""
