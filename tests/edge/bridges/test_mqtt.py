"""MQTT against a real broker: events, state, last will, triggers, Sparkplug B, passwords and TLS."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("paho.mqtt.client")

from edge.bridges.base import PlcLostError
from edge.bridges.bridge import Bridge
from edge.bridges.protocols.mqtt import PROTOCOL, MqttPlc, MqttSettings
from edge.bridges.settings import read_settings
from edge.bridges.side import StationAddress
from edge.bridges.tags import TAGS, Inputs, Outputs, StateCode
from edge.errors import BridgeError, UsageError
from edge.events.client import ControlClient
from edge.events.codec import EventMessage, event_to_json
from edge.events.requests import Trigger
from edge.inspection.result import Verdict
from tests.edge.bridges.broker import Listener, Mosquitto, hash_password, wait_for
from tests.edge.bridges.standin import StandIn
from tests.edge.bridges.test_sparkplug import an_event, payload_class

EVENT, STATUS = "redi/station1/cam0/event", "redi/station1/cam0/status"


def make(port: int, **keys: Any) -> MqttPlc:
    settings = {"name": "mqtt1", "protocol": "mqtt", "station": "station1", "camera": "cam0", "port": port, **keys}
    plc = PROTOCOL.connect(msgspec.convert(settings, MqttSettings), lambda: None)
    assert isinstance(plc, MqttPlc)
    return plc


@contextmanager
def opened(port: int, **keys: Any) -> Iterator[MqttPlc]:
    plc = make(port, **keys)
    plc.open()
    try:
        yield plc
    finally:
        plc.close()


@contextmanager
def bridged(folder: Path, station: StandIn, port: int, **keys: Any) -> Iterator[Bridge]:
    keys = {"port": port, "station": "station1", "camera": "cam0", "heartbeat_ms": 50, **keys}
    keys = {"trigger_timeout_ms": 10000, "deadline_ms": 20000, "station_timeout_ms": 20000, **keys}
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    path = folder / "bridge.toml"
    path.write_text(f'[[plc]]\nname = "mqtt1"\nprotocol = "mqtt"\n{table}\n')
    bridge = Bridge(read_settings(path), StationAddress(station.events, station.control), cursors=folder / "cursors")
    thread = threading.Thread(target=bridge.run, daemon=True)
    thread.start()
    try:
        yield bridge
    finally:
        bridge.stop()
        thread.join()


def inspect(client: ControlClient, count: int, start: int) -> None:
    """Let the station inspect parts that nobody asks the bridge about."""
    for number in range(start, start + count):
        assert client.send("trigger", Trigger(f"other-{number}")) is not None


def test_who_listens_gets_events_and_state_and_who_may_triggers(tmp_path: Path) -> None:
    def decide(request: Trigger) -> tuple[Verdict, float]:
        return (Verdict.NG if request.part_id.startswith("8.") else Verdict.OK), 0.0

    base = "redi/station1/cam0/"
    with Mosquitto(tmp_path) as broker, StandIn(tmp_path / "journal", decide) as station:
        with Listener(broker.port) as listener:
            with bridged(tmp_path, station, broker.port, commands=True):
                wait_for(lambda: any(each["ready"] for each in listener.objects(STATUS)))
                for part in (7, 8):
                    listener.publish(f"{base}trigger", json.dumps({"part": part, "encoder": part - 100}))
                wait_for(lambda: len(listener.payloads(f"{base}result")) == 2)
                wait_for(lambda: len(listener.payloads(EVENT)) == 2)
                listener.publish(f"{base}trigger", '{"part": 0}')
                listener.publish(f"{base}command", '{"command": "recipe", "value": 5}')
                # Recipe 5 is not in the key recipes: that holds an error, until it is acknowledged.
                wait_for(lambda: listener.objects(STATUS)[-1]["error"] == "command_refused")
                listener.publish(f"{base}command", '{"command": "acknowledge"}')
                wait_for(lambda: listener.objects(STATUS)[-1]["ready"])
                wait_for(lambda: len(listener.payloads(f"{base}answer")) == 5)
            wait_for(lambda: listener.objects(STATUS)[-1]["state"] == "offline")
        results = listener.objects(f"{base}result")
        assert [(each["part"], each["verdict"], each["region_count"]) for each in results] == [
            (7, "ok", 0),
            (8, "ng", 2),
        ]
        assert results[1]["worst_x_mm"] == 10.0
        assert [trigger.encoder for trigger in station.triggers] == [-93, -92]
        answers = listener.objects(f"{base}answer")
        assert {"part": 7, "taken": True} in answers
        assert {"part": 8, "taken": True} in answers
        assert {"command": "recipe", "done": False} in answers
        assert {"command": "acknowledge", "done": True} in answers
        (refused,) = [each for each in answers if each.get("taken") is False]
        assert "part" in refused["reason"]
        beats = [int(beat) for beat in listener.payloads(f"{base}heartbeat")]
        assert beats == sorted(beats)
        assert beats
        # The fields are those that edge-watch --json shows.
        event = listener.objects(EVENT)[1]
        assert list(event) == [key for key in json.loads(event_to_json(EventMessage(an_event(), b""))) if key != "mask"]
        assert event["verdict"] == "ng"
        # A late joiner learns the state, and no event.
        with Listener(broker.port) as late:
            wait_for(lambda: late.objects(STATUS))
            assert late.objects(STATUS) == [{"state": "offline"}]
            assert not late.payloads(EVENT)


def test_no_event_is_lost_when_the_broker_is_killed(tmp_path: Path) -> None:
    def numbers() -> list[int]:
        return [event["seq"] for event in listener.objects(EVENT)]

    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        StandIn(tmp_path / "journal", lambda _: (Verdict.OK, 0.0)) as station,
        ControlClient(station.control) as client,
    ):
        wait_for(lambda: client.send("trigger", Trigger("other-0")) is not None)
        with bridged(tmp_path, station, broker.port):
            wait_for(lambda: any(each["state"] == "ready" for each in listener.objects(STATUS)))
            inspect(client, 40, 1)
            wait_for(lambda: len(numbers()) > 5)
            broker.kill()
            inspect(client, 40, 41)
            broker.start()
            wait_for(lambda: numbers() and max(numbers()) == 81)
        inspect(client, 10, 81)
        # What was published while there was no bridge.
        with bridged(tmp_path, station, broker.port):
            wait_for(lambda: max(numbers()) == 91)
        first = min(numbers())
        assert first <= 2
        assert sorted(set(numbers())) == list(range(first, 92))
        assert list(dict.fromkeys(numbers())) == sorted(set(numbers()))


def test_a_bridge_that_is_cut_off_leaves_its_will(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        plc = make(broker.port, keepalive_s=1)
        plc.open()
        plc.write(Outputs(state=StateCode.READY, ready=True))
        wait_for(lambda: listener.objects(STATUS))
        assert plc._link is not None
        transport: Any = plc._link._client.socket()
        transport.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: listener.objects(STATUS)[-1] == {"state": "offline"})
        wait_for(lambda: plc._link is not None and plc._link._lost)
        with pytest.raises(PlcLostError, match=f"127.0.0.1:{broker.port}"):
            plc.read()
        with pytest.raises(PlcLostError):
            plc.event(an_event())
        plc.close()
        # And again.
        plc.open()
        plc.write(Outputs(state=StateCode.READY, ready=True))
        wait_for(lambda: listener.objects(STATUS)[-1]["state"] == "ready")
        plc.close()
        broker.kill()
        with pytest.raises(PlcLostError, match=f"no connection to the broker 127.0.0.1:{broker.port}"):
            plc.open()


def test_old_triggers_are_no_triggers(tmp_path: Path) -> None:
    base = "redi/station1/cam0/"
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        listener.publish(f"{base}trigger", '{"part": 3}', retain=True)
        with opened(broker.port, commands=True, trigger_timeout_ms=50) as plc:
            wait_for(lambda: plc.read() == Inputs() and listener.payloads(f"{base}answer"))
            listener.publish(f"{base}trigger", '{"part": 4}')
            wait_for(lambda: plc.read().trigger)
            plc.write(Outputs())
            # While part 4 is not acknowledged, part 5 waits; when its turn comes, it is another part's.
            listener.publish(f"{base}trigger", '{"part": 5}')
            wait_for(lambda: plc.read().trigger and plc._remote is not None and plc._remote._triggers)
            time.sleep(0.1)
            plc.write(Outputs(trigger_ack=True))
            assert not plc.read().trigger
            assert not plc.read().trigger
            wait_for(lambda: len(listener.payloads(f"{base}answer")) == 3)
        answers = listener.objects(f"{base}answer")
        assert "retained" in answers[0]["reason"]
        assert answers[1] == {"part": 4, "taken": True}
        assert answers[2] == {"part": 5, "taken": False, "reason": "it has waited too long"}


def test_sparkplug_hosts_understand_us(tmp_path: Path) -> None:
    prefix = "spBv1.0/redi"
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        decode = payload_class().FromString
        with opened(broker.port, format="sparkplug") as plc:
            plc.write(Outputs(state=StateCode.READY, ready=True))
            plc.event(an_event())
            plc.settle()
            rebirth = payload_class()(timestamp=1)
            rebirth.metrics.add(name="Node Control/Rebirth", datatype=11, boolean_value=True)
            listener.publish(f"{prefix}/NCMD/station1", rebirth.SerializeToString())
            wait_for(lambda: plc.read() and len(listener.payloads(f"{prefix}/NBIRTH/station1")) == 2)
        wait_for(lambda: f"{prefix}/NDEATH/station1" in listener.topics())
        seen = [topic.split("/")[2] for topic in listener.topics() if topic.startswith("spB")]
        assert seen == ["NBIRTH", "DBIRTH", "DDATA", "NCMD", "NBIRTH", "DBIRTH", "NDEATH"]
        assert "redi/station1/cam0/told" in listener.topics()
        (data,) = listener.payloads(f"{prefix}/DDATA/station1/cam0")
        metrics = {metric.name: metric for metric in decode(data).metrics}
        assert metrics["Result/Score"].double_value == 1.5
        assert metrics["Result/PartId"].string_value == "41.plc1.x.1"
        births = [decode(each).metrics[0] for each in listener.payloads(f"{prefix}/NBIRTH/station1")]
        deaths = [decode(each).metrics[0] for each in listener.payloads(f"{prefix}/NDEATH/station1")]
        assert {each.name for each in births + deaths} == {"bdSeq"}
        assert len({each.long_value for each in births + deaths}) == 1


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    import datetime
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(certificate_file), str(key_file)


def test_only_the_right_password_and_certificate_do(tmp_path: Path) -> None:
    good, good_key = certificate(tmp_path, "good")
    other, _ = certificate(tmp_path, "other")
    password = tmp_path / "password"
    password.write_text("the-secret-word\n")
    password.chmod(0o600)
    rules = tmp_path / "rules"
    rules.write_text("user bridge\ntopic readwrite redi/station1/#\n")
    rules.chmod(0o600)
    lines = [
        f"certfile {good}",
        f"keyfile {good_key}",
        f"password_file {hash_password(tmp_path, 'bridge', 'the-secret-word')}",
        f"acl_file {rules}",
    ]
    keys: dict[str, Any] = {"tls": True, "ca_file": good, "user": "bridge", "password_file": str(password)}
    with Mosquitto(tmp_path, *lines, anonymous=False) as broker:
        with opened(broker.port, **keys) as plc:
            plc.write(Outputs())
            plc.event(an_event())
            assert "the-secret-word" not in repr(plc._settings)
            plc.settle()
            # The broker's rules let this user not write elsewhere.
            assert plc._link is not None
            plc._link.publish("redi/station1x/cam0/event", b"")
            with pytest.raises(PlcLostError, match=r"refuses redi/station1x/cam0/event.*[Nn]ot authorized"):
                plc.settle()
        for wrong in ({"ca_file": other}, {"tls": False, "ca_file": ""}):
            with pytest.raises(PlcLostError, match="connection"):
                make(broker.port, **{**keys, **wrong}).open()
        password.write_text("another-word")
        with pytest.raises(PlcLostError, match="does not let us in") as raised:
            make(broker.port, **keys).open()
        assert "another-word" not in str(raised.value)
        with pytest.raises(BridgeError, match=r"nowhere\.pem: no such file"):
            make(broker.port, **{**keys, "ca_file": str(tmp_path / "nowhere.pem")}).open()
        password.chmod(0o644)
        with pytest.raises(BridgeError, match="open to others"):
            make(broker.port, **keys).open()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("plc_heartbeat = true", "plc_heartbeat"),
        ('format = "sparkplug"', "camera"),
        ('user = "me"', "password_file"),
        ('ca_file = "x"', "tls"),
        ('station = "a/b"', "station"),
        ("keepalive_s = 0", "keepalive_s"),
    ],
)
def test_wrong_keys_are_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(f'[[plc]]\nname = "m"\nprotocol = "mqtt"\n{line}\n')
    with pytest.raises(UsageError, match=problem):
        read_settings(path)


@pytest.mark.parametrize("commands", [False, True])
@pytest.mark.parametrize("form", ["json", "sparkplug"])
def test_every_tag_has_an_address_or_none(commands: bool, form: Any) -> None:
    settings = MqttSettings(name="m", protocol="mqtt", station="s", camera="c", format=form, commands=commands)
    addresses = {f"{tag.direction.value[:3]} {tag.name}": PROTOCOL.address(settings, tag) for tag in TAGS}
    assert addresses["sta State"] == ("redi/s/c/status state" if form == "json" else "metric Station/State")
    assert addresses["PLC PartId"] == ("redi/s/c/trigger part" if commands else "none")
    assert addresses["sta WorstXMm"] == ("redi/s/c/result worst_x_mm" if commands else "none")
    assert addresses["PLC Heartbeat"] == "none"
