from __future__ import annotations

import argparse
import dataclasses
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.commands.supervision_arguments import add_supervision_arguments, open_health
from edge.errors import PublishError
from edge.supervision import health
from edge.supervision.health import HealthServer, parse_address
from edge.supervision.report import ArchiveReport, CameraReport, Health, JournalReport, StationReport

LOOPBACK = "127.0.0.1:0"
LIMIT_S = 20.0


class Station:
    def __init__(self, report: StationReport) -> None:
        self.report = report
        self.asked = 0

    def __call__(self) -> StationReport:
        self.asked += 1
        return self.report


@pytest.fixture
def station(report: StationReport) -> Station:
    return Station(report)


@pytest.fixture
def server(station: Station, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealthServer]:
    monkeypatch.setattr(health, "_FRESH_S", -1.0)
    with HealthServer(LOOPBACK, station) as made:
        yield made


def get(server: HealthServer, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=LIMIT_S) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def raw(server: HealthServer, request: bytes) -> bytes:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_health_of_a_station_that_is_well(server: HealthServer) -> None:
    code, kind, body = get(server, "/health?verbose")
    told = json.loads(body)
    assert (code, kind) == (200, "application/json")
    assert (told["status"], told["reasons"], told["warnings"], told["archive"]) == ("ok", [], [], "ok")
    assert told["cameras"]["cam0"] == {
        "state": "running",
        "reasons": [],
        "frames": 100,
        "journal": "ok",
        "bundle_id": "b1",
        "calibration_id": "c1",
    }


def test_health_says_what_is_wrong(server: HealthServer, station: Station, report: StationReport) -> None:
    blind = CameraReport("cam1", "blind", problems=("no frame for 5 s",))
    stopped = CameraReport("cam2", "stopped")
    station.report = dataclasses.replace(
        report, cameras=(*report.cameras, blind, stopped), stalled=("capture",), problems=("no bundle",)
    )
    code, _, body = get(server, "/health")
    told = json.loads(body)
    assert (code, told["status"]) == (503, "failing")
    assert told["reasons"] == ["no bundle", "stalled: capture", "cam1: no frame for 5 s", "cam2: the camera is stopped"]
    assert b"redi_up 0.0\n" in get(server, "/metrics")[2]


def test_what_verdicts_do_not_depend_on_is_a_warning(report: StationReport) -> None:
    camera = dataclasses.replace(report.cameras[0], journal=JournalReport("degraded"))
    degraded = dataclasses.replace(
        report,
        cameras=(camera,),
        threads={"archive": True, "capture": False},
        archive=ArchiveReport("degraded", problem="No space left on device"),
    )
    assert degraded.health is Health.DEGRADED
    assert degraded.warnings == [
        "stalled: archive",
        "cam0: the journal is degraded",
        "the archive is degraded: No space left on device",
    ]
    assert StationReport().health is Health.FAILING


def test_metrics(server: HealthServer) -> None:
    code, kind, body = get(server, "/metrics")
    assert (code, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'redi_frames_total{camera="cam0"} 100.0\n' in body
    assert b'redi_camera_up{camera="cam \\"1\\"\\n"} 1.0\n' in body


def test_who_asks_often_asks_the_station_no_more(report: StationReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH_S", 3600.0)
    station = Station(report)
    with HealthServer(LOOPBACK, station) as server:
        answers = {get(server, "/health") for _ in range(20)}
    assert len(answers) == 1
    assert station.asked == 1


def test_a_report_that_fails_is_an_error_and_no_end(server: HealthServer, station: Station) -> None:
    def fail() -> StationReport:
        raise ValueError("a lock")

    server._report = fail
    code, _, body = get(server, "/health")
    assert (code, b"lock" in body) == (500, False)
    server._report = station
    assert get(server, "/health")[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /health HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health SPDY/9\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", 431),
    ],
)
def test_other_requests_are_refused(server: HealthServer, request_: bytes, status: int) -> None:
    assert raw(server, request_).startswith(b"HTTP/1.1 %d " % status)


def test_head_has_no_body(server: HealthServer) -> None:
    answer = raw(server, b"HEAD /health HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.fixture(scope="module")
def lasting() -> Iterator[HealthServer]:
    with HealthServer(LOOPBACK, StationReport) as made:
        yield made


@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_any_bytes_leave_it_answering(lasting: HealthServer, data: bytes) -> None:
    answer = raw(lasting, data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert get(lasting, "/health")[0] == 503


def test_slow_and_silent_clients_hold_nobody_up(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH_S", -1.0)
    with ExitStack() as stack:
        server = stack.enter_context(HealthServer(LOOPBACK, station, timeout_s=LIMIT_S))
        host, _, port = server.address.rpartition(":")
        # More than it keeps: some say nothing, some half a line, some read nothing of what they ask for.
        for number in range(3 * health._MAX_CONNECTIONS):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall((b"", b"GET /hea", b"GET /metrics HTTP/1.1\r\n\r\n")[number % 3])
        assert get(server, "/health")[0] == 200
        assert get(server, "/metrics")[0] == 200
        assert len(server._connections) <= health._MAX_CONNECTIONS + 1
        assert sum(thread.name == "health" for thread in threading.enumerate()) >= 1


def test_a_client_that_takes_too_long_is_cut_off(station: Station) -> None:
    with HealthServer(LOOPBACK, station, timeout_s=0.05) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")
            # The client leaves its side open; it ends all the same.
            with suppress(ConnectionResetError):
                while client.recv(100):
                    pass


def test_it_ends_while_clients_wait(station: Station) -> None:
    with ExitStack() as stack:
        server = HealthServer(LOOPBACK, station, timeout_s=LIMIT_S)
        host, _, port = server.address.rpartition(":")
        clients = [stack.enter_context(socket.create_connection((host, int(port)), LIMIT_S)) for _ in range(3)]
        assert get(server, "/health")[0] == 200
        server.close()
        server.close()
        assert not server._thread.is_alive()
        for client in clients:
            with suppress(ConnectionResetError):
                assert client.recv(10) == b""
        # And its port is free again.
        HealthServer(server.address, station).close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:9560", "example.invalid:80"])
def test_nothing_listens_beyond_loopback_unasked(address: str) -> None:
    with pytest.raises(PublishError, match="reached from other machines"):
        HealthServer(address, StationReport)


def test_insecure_listens_anywhere() -> None:
    with HealthServer("0.0.0.0:0", StationReport, insecure=True) as server:
        assert server.address.startswith("0.0.0.0:")


@pytest.mark.parametrize("address", ["", "9560", ":9560", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"])
def test_bad_addresses(address: str) -> None:
    with pytest.raises(PublishError, match="is not an address"):
        parse_address(address)


def test_an_address_in_use_is_said_to_be(server: HealthServer) -> None:
    with pytest.raises(PublishError, match=r"cannot listen at .*in use"):
        HealthServer(server.address, StationReport)
    with pytest.raises(PublishError, match="cannot listen at"):
        HealthServer("example.invalid:80", StationReport, insecure=True)


def test_ipv6_loopback() -> None:
    assert parse_address("[::1]:9560") == ("::1", 9560)


def test_the_arguments(station: Station) -> None:
    parser = argparse.ArgumentParser()
    add_supervision_arguments(parser)
    parser.add_argument("--insecure", action="store_true")
    assert open_health(parser.parse_args([]), station) is None
    server = open_health(parser.parse_args(["--health", LOOPBACK]), station)
    assert server is not None
    with server:
        assert get(server, "/health")[0] == 200
