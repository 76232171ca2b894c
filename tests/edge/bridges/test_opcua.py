"""OPC UA with a real client over loopback: security and users, jobs, variables, result events, losses."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("asyncua")

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from edge.bridges.bridge import Bridge
from edge.bridges.passwords import Users, read_users
from edge.bridges.protocols.opcua import PROTOCOL, OpcUaServer, OpcUaSettings
from edge.bridges.settings import read_settings
from edge.bridges.side import StationAddress
from edge.bridges.tags import CommandCode, ErrorCode, Outputs, StateCode, VerdictCode
from edge.commands import bridge as bridge_command
from edge.errors import BridgeError, UsageError
from edge.events.requests import Trigger
from edge.inspection.result import Verdict
from tests.edge.bridges.opcua_plc import certificate
from tests.edge.bridges.standin import StandIn

MACHINE = "ns=2;s=VisionStateMachine"


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


async def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Return as soon as something is so; the condition may be a coroutine function."""
    end = asyncio.get_running_loop().time() + timeout_s
    while True:
        found = condition()
        if await found if asyncio.iscoroutine(found) else found:
            return
        assert asyncio.get_running_loop().time() < end, "it does not come"
        await asyncio.sleep(0.005)


class Events:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def event_notification(self, event: Any) -> None:
        self.seen.append(event)


class Plc:
    """A PLC as an OPC UA client."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def see(self, name: str) -> Any:
        return await self.client.get_node(f"ns=2;s=ToPlc.{name}").read_value()

    async def put(self, **values: tuple[Any, ua.VariantType]) -> None:
        nodes = [self.client.get_node(f"ns=2;s=FromPlc.{name}") for name in values]
        await self.client.write_values(nodes, [ua.Variant(*value) for value in values.values()])

    async def state(self) -> str:
        top = (await self.client.get_node(MACHINE).get_child("0:CurrentState")).read_value()
        inner = await self.client.get_node("ns=2;s=AutomaticModeStateMachine").get_child("0:CurrentState")
        return "/".join(filter(None, ((await top).Text, (await inner.read_value()).Text)))

    async def call(self, name: str, *values: ua.Variant) -> Any:
        parent = "ns=2;s=AutomaticModeStateMachine" if name.startswith("Start") else MACHINE
        return await self.client.get_node(parent).call_method(f"3:{name}", *values)

    async def job(self, part: int, encoder: int, method: str = "StartSingleJob") -> Any:
        text, number = ua.VariantType.String, ua.VariantType.UInt32
        return await self.call(
            method,
            ua.Variant("m", text),
            ua.Variant(part, number),
            ua.Variant("", text),
            ua.Variant("", text),
            ua.Variant(encoder, ua.VariantType.Int32),
        )

    async def events(self) -> Events:
        events = Events()
        subscription = await self.client.create_subscription(20, events)
        kind = await self.client.nodes.base_event_type.get_child("3:ResultReadyEventType")
        await subscription.subscribe_events(self.client.get_node("ns=2;s=VisionSystem"), kind)
        return events


@asynccontextmanager
async def connected(port: int, setup: Callable[[Client], Any] | None = None) -> AsyncIterator[Plc]:
    client = Client(f"opc.tcp://127.0.0.1:{port}/redi/", timeout=10)
    if setup is not None:
        await setup(client)
    async with client:
        yield Plc(client)


def make(**keys: Any) -> OpcUaServer:
    table = {"name": "ua1", "protocol": "opcua", "port": 0, **keys}
    plc = PROTOCOL.connect(msgspec.convert(table, OpcUaSettings), lambda: None)
    assert isinstance(plc, OpcUaServer)
    return plc


@contextmanager
def bridged(folder: Path, station: StandIn, **keys: Any) -> Iterator[OpcUaServer]:
    timing = {"trigger_timeout_ms": 10000, "deadline_ms": 20000, "station_timeout_ms": 20000, "heartbeat_ms": 50}
    lines = [f"{key} = {str(value).lower() if isinstance(value, bool) else value!r}" for key, value in keys.items()]
    lines += [f"{key} = {value}" for key, value in timing.items()]
    path = folder / "bridge.toml"
    path.write_text("\n".join(['[[plc]]\nname = "ua1"\nprotocol = "opcua"\nport = 0', *lines, ""]))
    bridge = Bridge(read_settings(path), StationAddress(station.events, station.control))
    thread = threading.Thread(target=bridge.run, daemon=True)
    thread.start()
    try:
        server = bridge.sides[0].plc
        assert isinstance(server, OpcUaServer)
        yield server
    finally:
        bridge.stop()
        thread.join()


def decide(request: Trigger) -> tuple[Verdict, float]:
    return (Verdict.NG if request.part_id.startswith("8.") else Verdict.OK), 0.0


@in_a_loop
async def test_jobs_and_variables_get_their_results(tmp_path: Path) -> None:
    with (
        ExitStack() as life,
        bridged(
            tmp_path,
            station := life.enter_context(StandIn(tmp_path / "journal", decide)),
            liveness="session",
            plc_timeout_ms=2000.0,
        ) as server,
    ):
        await wait_for(lambda: server.port)
        async with connected(server.port) as plc:
            await wait_for(lambda: plc.see("Ready"))
            assert await plc.state() == "Operational/Ready"
            events = await plc.events()
            for part in (7, 8):
                await wait_for(lambda: plc.see("Ready"))
                name, error = await plc.job(part, part - 100)
                assert (name.split(".")[0], error) == (str(part), 0)
            await wait_for(lambda: len(events.seen) == 2)
            assert [(each.PartId, each.Verdict, each.RegionCount) for each in events.seen] == [(7, 1, 0), (8, 2, 2)]
            assert events.seen[1].JobId == name
            assert events.seen[1].WorstXMm == 10.0
            assert [each.encoder for each in station.triggers] == [-93, -92]
            assert (await plc.job(0, 0))[1] == -1
            # The same by variables; the result stands until it is acknowledged.
            await wait_for(lambda: plc.see("Ready"))
            boolean = ua.VariantType.Boolean
            await plc.put(
                Trigger=(True, boolean), PartId=(9, ua.VariantType.UInt32), Encoder=(-5, ua.VariantType.Int32)
            )
            await wait_for(lambda: plc.see("TriggerAck"))
            await plc.put(Trigger=(False, boolean))
            await wait_for(lambda: plc.see("ResultValid"))
            assert (await plc.see("PartId"), await plc.see("Verdict"), await plc.see("Score")) == (9, 1, 0.25)
            await plc.put(ResultAck=(True, boolean))
            await wait_for(lambda: not_valid(plc))
            await plc.put(ResultAck=(False, boolean))
            # Halted is not ready, whatever is triggered.
            await plc.call("Halt")
            assert await plc.state() == "Halted"
            assert not await plc.see("Ready")
            assert (await plc.job(10, 0))[1] == -1
            assert await plc.call("SelectModeAutomatic") == -1
            await plc.call("Reset")
            await wait_for(lambda: plc.see("Ready"))
            assert await plc.call("SelectModeAutomatic") == 0
            # Two errors, and one call that acknowledges them all.
            await plc.put(Trigger=(True, boolean), PartId=(0, ua.VariantType.UInt32))
            await wait_for(lambda: shows(plc, "ErrorCode", ErrorCode.PART_ID))
            await plc.put(Trigger=(False, boolean), Command=(99, ua.VariantType.UInt16))
            await wait_for(lambda: shows(plc, "CommandEcho", 99))
            await plc.put(Command=(0, ua.VariantType.UInt16))
            assert await plc.state() == "Error"
            assert await plc.call("ConfirmAll") == 0
            await wait_for(lambda: plc.see("Ready"))
            assert await plc.see("ErrorCode") == ErrorCode.NONE
            # There is no continuous execution.
            with pytest.raises(ua.UaStatusCodeError) as refused:
                await plc.job(11, 0, "StartContinuous")
            assert refused.value.code == ua.StatusCodes.BadNotImplemented
            # Nobody writes what the station says.
            with pytest.raises(ua.UaStatusCodeError):
                await plc.client.get_node("ns=2;s=ToPlc.Ready").write_value(True)
            # The station dies.
            life.close()
            await wait_for(lambda: not_ready(plc))
            assert await plc.state() == "Error"


async def not_ready(plc: Plc) -> bool:
    return not await plc.see("Ready")


async def shows(plc: Plc, name: str, value: int) -> bool:
    return bool(await plc.see(name) == value)


async def not_valid(plc: Plc) -> bool:
    return not await plc.see("ResultValid")


@in_a_loop
async def test_only_users_with_security_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, key = certificate(tmp_path, "server")
    friend, friend_key = certificate(tmp_path, "friend")
    stranger, stranger_key = certificate(tmp_path, "stranger")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "friend.pem").write_bytes(Path(friend).read_bytes())
    users = Users({})
    users.put("line1", "the-secret-word")
    users.save(tmp_path / "users")
    assert "the-secret-word" not in (tmp_path / "users").read_text()
    plc = make(
        certificate_file=own, key_file=key, users_file=str(tmp_path / "users"), trusted=str(trusted), host="127.0.0.1"
    )
    plc.open()

    def how(
        password: str | None, who: tuple[str, str] | None, mode: Any = ua.MessageSecurityMode.SignAndEncrypt
    ) -> Callable[[Client], Any]:
        async def setup(client: Client) -> None:
            if password is not None:
                client.set_user("line1")
                client.set_password(password)
            if who is not None:
                client.application_uri = f"urn:test:{Path(who[0]).stem}"
                await client.set_security(SecurityPolicyBasic256Sha256, who[0], who[1], mode=mode)

        return setup

    known = (friend, friend_key)
    try:
        for mode in (ua.MessageSecurityMode.SignAndEncrypt, ua.MessageSecurityMode.Sign):
            async with connected(plc.port, how("the-secret-word", known, mode)) as client:
                await client.put(PartId=(5, ua.VariantType.UInt32))
                assert plc.read().part_id == 5
        for setup in (
            how("another-word", known),
            how(None, known),
            how("the-secret-word", None),
            how("the-secret-word", (stranger, stranger_key)),
        ):
            with pytest.raises((ua.UaError, ConnectionError, asyncio.TimeoutError)):
                async with connected(plc.port, setup):
                    pass
        # While a password is checked, others are served.
        checking, go_on = threading.Event(), threading.Event()

        def admit(self: Users, name: str, password: str) -> bool:
            checking.set()
            return go_on.wait(20) and False

        async def knock() -> None:
            with pytest.raises(ua.UaError):
                async with connected(plc.port, how("another-word", known)):
                    pass

        async with connected(plc.port, how("the-secret-word", known)) as client:
            monkeypatch.setattr(Users, "admit", admit)
            knocking = asyncio.ensure_future(knock())
            await wait_for(checking.is_set)
            assert not await client.see("Ready")
            go_on.set()
            await knocking
    finally:
        plc.close()


@in_a_loop
async def test_what_is_written_together_is_seen_together_and_losses_end_heartbeats() -> None:
    plc = make(liveness="session", plc_timeout_ms=100.0)
    plc.open()
    try:
        async with connected(plc.port) as client:
            await wait_for(lambda: plc.read().heartbeat > 1)
            plc.write(Outputs(ready=True, state=StateCode.READY))
            events = await client.events()
            result = Outputs(part_id=3, verdict=VerdictCode.LATE, result_valid=True, state=StateCode.READY)
            await asyncio.to_thread(plc.write, result)
            await asyncio.to_thread(plc.write, msgspec.structs.replace(result, heartbeat=1))
            await wait_for(lambda: events.seen)
            # No job was started for it: it waits for the acknowledgement.
            assert not plc.read().result_ack
            assert (events.seen[0].PartId, events.seen[0].Verdict) == (3, VerdictCode.LATE)
            # A value of another type is refused, and changes nothing.
            with pytest.raises(ua.UaStatusCodeError):
                await client.put(Encoder=(1.5, ua.VariantType.Float))
            assert plc.read().encoder == 0
            # A job that another client's reset drops returns, and the next one may start.
            await asyncio.to_thread(plc.write, Outputs(ready=True, state=StateCode.READY))
            job = asyncio.ensure_future(client.job(5, 0))
            await wait_for(lambda: plc.read().trigger)
            async with connected(plc.port) as other:
                assert await other.call("Reset") == 0
            assert plc.read().command == CommandCode.RESET
            await asyncio.to_thread(plc.write, Outputs(command_echo=CommandCode.RESET))
            assert (await job)[1] == -1
            await wait_for(lambda: not plc.read().trigger)
            await asyncio.to_thread(plc.write, Outputs(ready=True, state=StateCode.READY))
            again = asyncio.ensure_future(client.job(6, 0))
            await wait_for(lambda: plc.read().part_id == 6)
            await asyncio.to_thread(plc.write, Outputs(trigger_ack=True))
            assert (await again)[1] == 0
        assert plc._server is not None
        await wait_for(lambda: not plc._server.bserver.clients)
        beat = plc.read().heartbeat
        await asyncio.sleep(0.1)
        assert plc.read().heartbeat == beat
    finally:
        plc.close()


def test_an_address_in_use_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BridgeError, match=f"127.0.0.1:{port}"):
            make(port=port).open()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('host = "0.0.0.0"', "nobody could log in"),
        ('users_file = "x"', "in the clear"),
        ('certificate_file = "x"', "key_file"),
        ("anonymous = false", "nobody"),
        ('trusted = "x"', "certificate_file"),
    ],
)
def test_wrong_keys_are_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(f'[[plc]]\nname = "u"\nprotocol = "opcua"\n{line}\n')
    with pytest.raises(UsageError, match=problem):
        read_settings(path)


def test_the_command_makes_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    path = tmp_path / "users"
    for name, word in (("a", "one"), ("b", "two"), ("a", "three")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{word}\n"))
        assert bridge_command.main(["user", name, "--file", str(path)]) == 0
    users = read_users(path)
    assert users.names == ["a", "b"]
    assert [users.admit("a", "one"), users.admit("a", "three"), users.admit("b", "two"), users.admit("c", "")] == [
        False,
        True,
        True,
        False,
    ]
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("rubbish\n")
    with pytest.raises(BridgeError, match="line 1"):
        read_users(path)
