"""OPC UA: a server with the names and the state machine of OPC 40100-1 (OPC UA for Machine Vision).

A PLC either writes and reads the signals as variables, with the same handshake as on any other protocol, or calls
`StartSingleJob` and subscribes to `ResultReadyEventType`; such a job's result needs no acknowledgement.

Of OPC 40100-1 there are, by name: the states Preoperational, Halted, Error and Operational with Initialized, Ready and
SingleExecution (ContinuousExecution is never entered, StartContinuous answers Bad_NotImplemented); the methods Reset,
Halt, SelectModeAutomatic, ConfirmAll and StartSingleJob; the event ResultReadyEventType.  Ids are plain strings and
numbers instead of the standard's structures, and results carry our signals.  Not there: recipe, configuration and
result management, conditions, the step model.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from asyncua import Server, ua, uamethod
from asyncua.common.callback import CallbackType

from edge.bridges.base import Milliseconds, Plc, PlcLostError, PlcSettings, Port, Protocol
from edge.bridges.opcua_model import SIGNALS_INDEX, VisionModel, node_name
from edge.bridges.opcua_security import secure
from edge.bridges.tags import RESULT_FIELDS, CommandCode, Inputs, Outputs, StateCode, Tag
from edge.errors import BridgeError

# What goes wrong is said by the errors raised here, once.
logging.getLogger("asyncua").setLevel(logging.CRITICAL)

_DONE, _REFUSED = 0, -1
# Beyond the trigger's own time-out.
_JOB_S = 10.0


class OpcUaSettings(PlcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of an OPC UA server.

    Attributes:
        host, port: where to listen.
        liveness: `heartbeat`: the PLC writes FromPlc.Heartbeat; `session`: it is there while a session is open, for
            clients that only call methods.
        certificate_file, key_file: the server's; with them, clients must sign, or sign and encrypt (Basic256Sha256).
        trusted: folder with the certificates of the clients that may connect; any where empty.
        users_file: who may log in, see `edge-bridge user`.
        anonymous: admit clients without a user; by default only on loopback, and where there is no users_file.
        timeout_ms: for handing outputs to the server's thread.
    """

    host: str = "127.0.0.1"
    port: Port = 4840
    liveness: Literal["heartbeat", "session"] = "heartbeat"
    certificate_file: str = ""
    key_file: str = ""
    trusted: str = ""
    users_file: str = ""
    anonymous: bool | None = None
    timeout_ms: Milliseconds = 2000.0

    def __post_init__(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file go together")
        if self.users_file and not self.certificate_file:
            raise ValueError("users_file needs certificate_file and key_file: passwords would go in the clear")
        if self.trusted and not self.certificate_file:
            raise ValueError("trusted needs certificate_file and key_file")
        if not self.users_file and not self.admits_anonymous:
            raise ValueError(
                f"nobody could log in at host = {self.host}: add users_file, or anonymous = true to admit everybody"
            )

    @property
    def admits_anonymous(self) -> bool:
        """Whether a client without a user is admitted."""
        if self.anonymous is not None:
            return self.anonymous
        return not self.users_file and _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(eq=False)
class _Job:
    """A `StartSingleJob` on its way to the station; `taken`: its trigger is acknowledged, or else it was dropped."""

    part: int
    encoder: int
    taken: asyncio.Future[bool]
    over: bool = False

    def settle(self, taken: bool) -> None:
        """Let the method return."""
        if not self.taken.done():
            self.taken.set_result(taken)


class OpcUaServer(Plc):
    """Serves OPC UA; its event loop runs in a thread of its own."""

    polled = False

    def __init__(self, settings: OpcUaSettings, wake: Callable[[], None]) -> None:
        self._settings, self._wake = settings, wake
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._beats: asyncio.Task[None] | None = None
        #: The port that is served; for `port = 0`, a free one.
        self.port = settings.port
        self._begin()

    def _begin(self) -> None:
        """Forget what was written: who connects next has written nothing yet."""
        self._written = Inputs()
        self._shown = Outputs()
        self._beat = 0
        self._job: _Job | None = None
        # Parts whose results are told by an event alone.
        self._jobs: dict[int, str] = {}
        self._told = False
        self._reset = self._halted = self._stale_trigger = False
        # Acknowledging one error after the other, and whether the last reading did so.
        self._confirming = self._confirmed = False
        self._job_count = 0

    def open(self) -> None:
        """Listen."""
        try:
            # Before the seconds that building the nodes takes.
            with socket.create_server((self._settings.host, self._settings.port)):
                pass
        except OSError as error:
            raise self._cannot_listen(error) from error
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(loop,), name="opcua-server", daemon=True)
        self._thread.start()
        self._begin()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), loop).result()
        except OSError as error:
            self.close()
            raise self._cannot_listen(error) from error
        except BaseException:
            self.close()
            raise

    def read(self) -> Inputs:
        """Return what the PLC wrote last, by variables or methods."""
        with self._lock:
            inputs, changes = self._written, dict[str, Any]()
            if self._settings.liveness == "session":
                changes["heartbeat"] = self._beat
            if self._job is not None and self._job.over:
                self._job = None
                changes["trigger"] = False
                self._wake()
            elif self._job is not None:
                changes |= {"trigger": True, "part_id": self._job.part, "encoder": self._job.encoder}
            elif self._halted or self._stale_trigger:
                # What was set while halted is no trigger afterwards.
                self._stale_trigger = inputs.trigger
                changes["trigger"] = False
            if self._shown.result_valid and self._shown.part_id in self._jobs:
                changes["result_ack"] = True
            if self._reset:
                changes |= {"command": CommandCode.RESET}
            if self._confirming:
                changes["error_ack"] = self._confirmed = self._shown.error and not self._confirmed
                self._confirming = self._shown.error
                self._wake()
            return msgspec.structs.replace(inputs, **changes)

    def write(self, outputs: Outputs) -> None:
        """Let the clients see this, and tell a new result."""
        with self._lock:
            before, self._shown = self._shown, outputs
            fresh = outputs.result_valid and (not before.result_valid or _result(before) != _result(outputs))
            name = self._jobs.get(outputs.part_id, "")
            if before.result_valid and not outputs.result_valid:
                self._jobs.pop(before.part_id, None)
            job = self._job
            done = self._reset and outputs.command_echo == CommandCode.RESET
            if job is not None and not job.over and (outputs.trigger_ack or done):
                # A reset drops it: its trigger will not be acknowledged any more.
                job.over = True
                self._call(functools.partial(job.settle, not done))
                self._wake()
            if done:
                self._reset = False
                self._wake()
            if name and outputs.result_valid != before.result_valid:
                self._wake()
            if self._halted:
                outputs = msgspec.structs.replace(outputs, ready=False, state=StateCode.HALTED)
        self._run(self._show(outputs, name if fresh else None))

    def close(self) -> None:
        """Stop listening, and close all sessions."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = self._server = None

    def _cannot_listen(self, error: OSError) -> BridgeError:
        return BridgeError(
            f"cannot listen on {self._settings.host}:{self._settings.port} for OPC UA: {error.strerror or error}",
            "another program has this port, or the address is not this machine's",
        )

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._loop is None:
            coroutine.close()
            raise PlcLostError("the OPC UA server is not open")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            future.result(self._settings.timeout_ms / 1000)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise PlcLostError(f"the OPC UA server does not answer within {self._settings.timeout_ms:g} ms") from error

    def _call(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    # In the server's thread

    async def _start(self) -> None:
        server = Server()
        await server.init()
        await secure(server, self._settings)
        server.set_endpoint(f"opc.tcp://{self._settings.host}:{self._settings.port}/redi/")
        server.set_server_name("redi-edge")
        self._model = VisionModel(server)
        await self._model.build(
            {
                "Reset": uamethod(self._on_reset),
                "Halt": uamethod(self._on_halt),
                "SelectModeAutomatic": uamethod(self._on_select),
                "ConfirmAll": uamethod(self._on_confirm),
                "StartSingleJob": uamethod(self._on_start),
                "StartContinuous": self._on_continuous,
            }
        )
        await self._model.show(Outputs())
        server.subscribe_server_callback(CallbackType.PostWrite, self._on_write)
        await server.start()
        self._server = server
        assert server.bserver is not None
        self.port = server.bserver.port
        if self._settings.liveness == "session":
            self._beats = asyncio.create_task(self._watch_sessions(server))

    async def _stop(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
            self._beats = None
        if self._job is not None and not self._job.taken.done():
            self._job.taken.cancel()
        if self._server is not None:
            await self._server.stop()

    async def _show(self, outputs: Outputs, job: str | None) -> None:
        await self._model.show(outputs)
        if job is not None:
            await self._model.tell(outputs, job)

    async def _watch_sessions(self, server: Server) -> None:
        """Beat in the PLC's stead while somebody is logged in."""
        while True:
            await asyncio.sleep(self._settings.plc_timeout_ms / 4000)
            clients: list[Any] = [] if server.bserver is None else list(server.bserver.clients)
            sessions = [client.processor.session for client in clients]
            if any(session is not None and session.is_activated() for session in sessions):
                with self._lock:
                    self._beat = (self._beat + 1) % 0x1_0000
                self._wake()

    def _on_write(self, event: Any, _: object) -> None:
        changes = {}
        for item, status in zip(event.request_params.NodesToWrite, event.response_params, strict=True):
            tag = self._model.inputs.get(item.NodeId)
            if tag is not None and item.AttributeId == ua.AttributeIds.Value and status.is_good():
                changes[tag.field] = item.Value.Value.Value
        if not changes:
            return
        with self._lock:
            try:
                self._written = msgspec.convert({**msgspec.structs.asdict(self._written), **changes}, Inputs)
            except msgspec.ValidationError:
                # An array, such as no signal is.
                return
            if changes.get("trigger"):
                # Its result waits for an acknowledgement.
                self._jobs.pop(self._written.part_id, None)
        self._wake()

    async def _on_start(
        self, _: object, meas: str | None, part: int, recipe: str | None, product: str | None, encoder: int
    ) -> tuple[str, int]:
        with self._lock:
            if self._job is not None or self._halted or not self._shown.ready or part == 0:
                return "", _REFUSED
            self._job_count += 1
            name = f"{part}.{self._job_count}"
            job = self._job = _Job(part, encoder, asyncio.get_running_loop().create_future())
            self._jobs[part] = name
        self._wake()
        try:
            # The trigger is acknowledged, or the part's verdict is fault, long before.
            taken = await asyncio.wait_for(job.taken, self._settings.trigger_timeout_ms / 1000 + _JOB_S)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            taken = False
            with self._lock:
                # As after a loss of who had started it: the next one must not wait for it.
                job.over = True
            self._wake()
        return name, _DONE if taken else _REFUSED

    async def _on_continuous(self, *_: object) -> ua.StatusCode:
        # Results are of triggered parts; a station that triggers itself tells them all over MQTT.
        return ua.StatusCode(ua.StatusCodes.BadNotImplemented)

    async def _on_reset(self, _: object) -> int:
        with self._lock:
            self._reset, self._halted = True, False
            self._jobs.clear()
        self._wake()
        return _DONE

    async def _on_halt(self, _: object) -> int:
        with self._lock:
            self._reset = self._halted = True
            self._jobs.clear()
            shown = msgspec.structs.replace(self._shown, ready=False, state=StateCode.HALTED)
        await self._model.show(shown)
        self._wake()
        return _DONE

    async def _on_select(self, _: object) -> int:
        # There is no other mode.
        return _REFUSED if self._halted else _DONE

    async def _on_confirm(self, _: object) -> int:
        with self._lock:
            self._confirming, self._confirmed = True, False
        self._wake()
        return _DONE


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _result(outputs: Outputs) -> list[object]:
    return [getattr(outputs, field) for field in RESULT_FIELDS]


def _address(settings: OpcUaSettings, tag: Tag) -> str:
    return f"ns={SIGNALS_INDEX};s={node_name(tag)}"


PROTOCOL = Protocol(settings=OpcUaSettings, connect=OpcUaServer, address=_address)
