from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bridges.base import PlcLostError
from edge.bridges.bridge import Bridge
from edge.bridges.protocols.s7 import S7Plc, S7Settings
from edge.bridges.settings import read_settings
from edge.bridges.side import StationAddress
from edge.bridges.tags import Outputs, TagType
from edge.errors import UsageError
from edge.events.requests import Trigger
from edge.inspection.result import Verdict
from tests.edge.bridges.modbus_plc import Values, wait_for
from tests.edge.bridges.plc import Line, Program
from tests.edge.bridges.s7_plc import S7Server, decode, encode, exported_tags, place
from tests.edge.bridges.standin import StandIn

# Generous, as the tests' machine may be busy: what they decide on is who comes first, not when.
ACK_S = 2.0
DOCS = Path(__file__).parents[4] / "docs"


def the(**keys: Any) -> S7Settings:
    return S7Settings(name="plc1", protocol="s7", **keys)


@contextmanager
def running(folder: Path, station: StandIn, port: int) -> Iterator[list[str]]:
    path = folder / "bridge.toml"
    path.write_text(
        f'[[plc]]\nname = "plc1"\nprotocol = "s7"\nport = {port}\npoll_ms = 2\nheartbeat_ms = 50\n'
        f"trigger_timeout_ms = {1000 * ACK_S}\ndeadline_ms = 4000\nplc_timeout_ms = 3000\ntimeout_ms = 2000\n"
    )
    said: list[str] = []
    bridge = Bridge(read_settings(path), StationAddress(station.events, station.control), report=said.append)
    thread = threading.Thread(target=bridge.run, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        bridge.stop()
        thread.join()
        assert bridge.sides[0].error is None


def look(lines: list[Line]) -> Callable[[Trigger], tuple[Verdict, float] | None]:
    """Inspect what is in front of the camera, whatever the part's name."""

    def decide(request: Trigger) -> tuple[Verdict, float]:
        part = lines[-1].in_view()
        assert part is not None
        return (Verdict.NG if part.defective else Verdict.OK), 0.0

    return decide


def program(line: Line) -> Program:
    return Program(line, ack_timeout_s=ACK_S, bridge_timeout_s=3.0)


def test_every_defect_is_rejected_also_by_a_plc_that_was_restarted(tmp_path: Path) -> None:
    # The restarted program numbers its parts from 1 again.
    before = Line(200, spacing_s=0.02, to_gate_s=0.1, indexed=True, defects=frozenset(range(2, 200, 3)))
    after = Line(10, spacing_s=0.02, to_gate_s=2.5, indexed=True, defects=frozenset({1, 5, 6}))
    lines = [before]
    with StandIn(tmp_path / "journal", look(lines)) as station:
        first = S7Server(program(before).scan)
        try:
            with running(tmp_path, station, first.port) as said:
                wait_for(lambda: sum(part.passed is not None for part in before.parts) >= 6)
                first.close()
                lines.append(after)
                wait_for(lambda: said)
                with S7Server(program(after).scan, first.port):
                    wait_for(lambda: after.done)
        finally:
            first.close()
        asked = [trigger.encoder for trigger in station.triggers][-10:]
    assert not any(part.passed for part in before.parts if part.defective)
    assert any(part.passed for part in before.parts)
    assert [part.passed for part in after.parts] == [not part.defective for part in after.parts]
    assert asked == [100 * part.number - 1000 for part in after.parts]
    assert f"127.0.0.1:{first.port}" in said[0]
    assert said[-1].endswith("connected again") or len(said) > 2


def test_the_block_says_not_ready_when_the_bridge_has_ended(tmp_path: Path) -> None:
    seen: Values = {}

    def scan(values: Values) -> Values:
        seen.update(values)
        return {"Heartbeat": (seen["Heartbeat"] + 1) % 65536}

    with StandIn(tmp_path / "journal", lambda _: None) as station, S7Server(scan) as server:
        with running(tmp_path, station, server.port):
            wait_for(lambda: seen.get("Ready"))
        wait_for(lambda: not seen["Ready"])
        assert seen["State"] == 2


@contextmanager
def connected(server: S7Server, **keys: Any) -> Iterator[S7Plc]:
    plc = S7Plc(the(port=server.port, **{"timeout_ms": 10_000, **keys}))
    plc.open()
    try:
        yield plc
    finally:
        plc.close()


def values_of(kind: TagType) -> st.SearchStrategy[Any]:
    if kind is TagType.BOOL:
        return st.booleans()
    return st.floats(width=32, allow_nan=False) if kind is TagType.REAL else st.integers(*kind.limits)


def field_of(tag: dict[str, str]) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", tag["name"]).lower()


def test_each_tag_is_at_its_exported_address() -> None:
    """As snap7's own functions for PLC memory find it."""
    tags = exported_tags()
    with S7Server(lambda _: {}, period_s=60) as server, connected(server) as plc:

        @settings(max_examples=10, deadline=None)
        @given(values=st.tuples(*(values_of(TagType(tag["type"])) for tag in tags)))
        def check(values: tuple[Any, ...]) -> None:
            wanted = {field_of(tag): value for tag, value in zip(tags, values, strict=True) if is_ours(tag)}
            plc.write(Outputs(**wanted))
            for tag, value in zip(tags, values, strict=True):
                if not is_ours(tag):
                    encode(server.memory, tag, value)
            inputs = plc.read()
            for tag, value in zip(tags, values, strict=True):
                found = decode(server.memory, tag) if is_ours(tag) else getattr(inputs, field_of(tag))
                assert found == value, tag["name"]

        check()


def is_ours(tag: dict[str, str]) -> bool:
    return tag["written by"] == "station"


def test_a_part_id_that_comes_while_the_block_is_read_belongs_to_its_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {tag["name"]: tag for tag in exported_tags() if tag["written by"] == "PLC"}
    with S7Server(lambda _: {}, period_s=60) as server, connected(server) as plc:
        assert not plc.read().trigger
        whole = plc._client.db_read

        def torn(db: int, start: int, size: int) -> bytearray:
            end = whole(db, start + 2, size - 2)
            encode(server.memory, tags["PartId"], 7)
            encode(server.memory, tags["Trigger"], True)
            return whole(db, start, 2) + end

        monkeypatch.setattr(plc._client, "db_read", torn)
        inputs = plc.read()
        assert (inputs.trigger, inputs.part_id) == (True, 7)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"db": 7}, ["DB7.DBB0 to DBB15", "Object does not exist", "Optimized block access"]),
        ({"from_plc": 200}, ["DB100.DBB200 to DBB215", "Invalid address", "shorter"]),
    ],
)
def test_a_block_that_cannot_be_read_is_named(keys: dict[str, int], words: list[str]) -> None:
    with S7Server(lambda _: {}, period_s=60) as server, connected(server, **keys) as plc:
        with pytest.raises(PlcLostError) as raised:
            plc.read()
        for word in [*words, f"127.0.0.1:{server.port}", "cannot be read"]:
            assert word in str(raised.value)


def test_a_block_that_cannot_be_written_is_named() -> None:
    with (
        S7Server(lambda _: {}, size=59, period_s=60) as server,
        connected(server) as plc,
        pytest.raises(PlcLostError, match=r"DB100\.DBB16 to DBB59 of .* cannot be written: .*shorter"),
    ):
        plc.write(Outputs())


def test_a_refusal_says_what_to_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    with S7Server(lambda _: {}, period_s=60) as server, connected(server) as plc:
        # As a CPU answers that does not permit PUT and GET.
        refuse: Any = server._server
        monkeypatch.setattr(
            refuse, "_handle_read_area", lambda request, _: refuse._build_error_response(request, 0x8104)
        )
        with pytest.raises(PlcLostError, match="Permit access with PUT/GET"):
            plc.read()


def test_a_plc_that_hangs_or_is_not_there_is_lost() -> None:
    with S7Server(lambda _: {}, period_s=60) as server, connected(server, timeout_ms=50) as plc:
        with server._lock, pytest.raises(PlcLostError, match="no answer in time"):
            plc.read()
        with pytest.raises(PlcLostError, match="DB100"):
            plc.write(Outputs())
        plc.close()
        with pytest.raises(PlcLostError, match="DB100"):
            plc.read()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PlcLostError, match=rf"no connection to 127.0.0.1:{port} \(rack 0, slot 2\)"):
        S7Plc(the(port=port, slot=2)).open()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("to_plc = 14", "overlap: to_plc = 14"),
        ("from_plc = 58", "overlap: to_plc = 16"),
        ("from_plc = 61", "`from_plc`"),
        ("slot = 32", "`slot`"),
        ("db = 0", "`db`"),
    ],
)
def test_wrong_keys_are_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(f'[[plc]]\nname = "line1"\nprotocol = "s7"\n{line}\n')
    with pytest.raises(UsageError) as raised:
        read_settings(path)
    assert words in raised.value.problem


def test_the_documented_block_has_each_tag_at_its_address() -> None:
    """The example's variables, at the offsets that STEP 7 gives to a block of standard access."""
    (text,) = re.findall(r"DATA_BLOCK.*?END_DATA_BLOCK", (DOCS / "plc.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "S7_Optimized_Access := 'FALSE'" in text
    sizes = {"UInt": 2, "UDInt": 4, "DInt": 4, "Real": 4}
    declared: list[tuple[str, str, int, int]] = []
    byte = bit = 0
    for name, kind in re.findall(r"^\s*(\w+) : (\w+)", text, re.MULTILINE):
        if kind == "Bool":
            byte, bit = byte + bit // 8, bit % 8
            declared.append((name, "BOOL", byte, bit))
            bit += 1
            continue
        # After bits, and for a STRUCT, an even byte follows.
        byte, bit = byte + (bit > 0) + (byte + (bit > 0)) % 2, 0
        if kind != "Struct":
            declared.append((name, kind.upper(), byte, 0))
            byte += sizes[kind]
    assert declared == [(tag["name"], tag["type"], *place(tag)[1:]) for tag in exported_tags()]
