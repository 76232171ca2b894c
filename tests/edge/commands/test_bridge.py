from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.bridges.tags import INPUT_TAGS, TAGS
from edge.commands.bridge import main
from tests.edge.bridges.driving import write_config
from tests.edge.bridges.modbus_plc import ServingPlc
from tests.edge.bridges.plc import Line, Program, Values
from tests.ports import free_port

CONFIG = '[[plc]]\nname = "line1"\nprotocol = "modbus"\nto_plc = 400\nfrom_plc = 500\n'


def test_tags_of_a_plc_are_at_its_own_addresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(CONFIG)
    assert main(["tags", "--config", str(path), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [tag.name for tag in TAGS]
    assert rows[0]["address"] == "holding register 500 bit 0"
    assert next(row for row in rows if row["name"] == "Verdict")["address"] == "holding register 408"
    assert main(["tags", "--protocol", "modbus"]) == 0
    assert "ResultValid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--config"),
        (["--config", "none.toml"], 2, "none.toml"),
        (["--config", "bridge.toml", "--events", "udp://x:1"], 5, "udp://x:1"),
        (["tags", "--config", "bridge.toml", "--plc", "line9"], 2, "line9"),
        (["tags", "--protocol", "modbus", "--plc", "line1"], 2, "--plc"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bridge.toml").write_text(CONFIG)
    assert main(arguments) == code
    assert words in capsys.readouterr().err


def test_it_runs_without_station_and_plc_until_it_is_ended(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "bridge.toml"
    path.write_text(f"{CONFIG}port = {port}\n")
    command = [sys.executable, "-m", "edge.commands.bridge", "--config", str(path), "--events", f"ipc://{tmp_path}/e"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "no connection" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read()
        assert process.wait(20) == 0
    assert f"line1: no connection to 127.0.0.1:{port}" in said
    assert "stopped" in said


@pytest.fixture
def plc_config(tmp_path: Path) -> Callable[[int], str]:
    def write(port: int) -> str:
        return str(write_config(tmp_path, port=port))

    return write


def test_test_walks_through_every_signal(plc_config: Callable[[int], str], capsys: pytest.CaptureFixture[str]) -> None:
    line = Line(8, spacing_s=0.03, to_gate_s=0.05, indexed=True)
    program = Program(line, ack_timeout_s=5.0)
    with ServingPlc(program.scan) as plc:
        assert main(["test", "--config", plc_config(plc.port), "--timeout", "20"]) == 0
    said = capsys.readouterr().out
    for tag in INPUT_TAGS:
        if tag.field != "command_value":
            assert f"{tag.name} (holding register 10" in said
    for word in ("ok", "ng", "late", "fault", "4 trigger refused"):
        assert word in said
    assert "failed" not in said
    assert [program.register[number].verdict for number in range(1, 6)] == [1, 2, 3, 4, 4]


def never_acknowledges(seen: Values, wanted: Values) -> Values:
    return {**wanted, "ResultAck": False}


def never_clears_its_trigger(seen: Values, wanted: Values) -> Values:
    return {**wanted, "Trigger": wanted.get("Trigger") or seen["TriggerAck"]}


def gives_no_part_id(seen: Values, wanted: Values) -> Values:
    return {**wanted, "PartId": 0}


def has_no_heartbeat(seen: Values, wanted: Values) -> Values:
    return {**wanted, "Heartbeat": 7}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (never_acknowledges, ["ResultAck (holding register 100 bit 1) is 0", "Verdict (holding register 8) = 1 ok"]),
        (never_clears_its_trigger, ["Trigger (holding register 100 bit 0) is 1", "(holding register 0 bit 1) is 1"]),
        (gives_no_part_id, ["PartId (holding register 104) is 0"]),
        (has_no_heartbeat, ["Heartbeat (holding register 101) stands still at 7"]),
    ],
)
def test_test_names_what_the_plc_does_not_do(
    bad: Callable[[Values, Values], Values],
    words: list[str],
    plc_config: Callable[[int], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = Program(Line(8, spacing_s=0.03, to_gate_s=0.05, indexed=True), ack_timeout_s=5.0)
    with ServingPlc(lambda seen: bad(seen, program.scan(seen))) as plc:
        assert main(["test", "--config", plc_config(plc.port), "--timeout", "0.6"]) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    for word in words:
        assert word in failed


def test_test_names_who_cannot_be_reached(plc_config: Callable[[int], str], capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert main(["test", "--config", plc_config(port), "--timeout", "0.2"]) == 1
    assert f"no connection to 127.0.0.1:{port}" in capsys.readouterr().out


def test_test_shows_both_sides_on_a_terminal(
    plc_config: Callable[[int], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    program = Program(Line(8, spacing_s=0.03, to_gate_s=0.05, indexed=True), ack_timeout_s=5.0)
    with ServingPlc(lambda seen: never_acknowledges(seen, program.scan(seen))) as plc:
        assert main(["test", "--config", plc_config(plc.port), "--timeout", "1.5"]) == 1
    said = capsys.readouterr().out
    assert "Verdict (holding register 8)" in said
    assert "waiting for ResultAck" in said
