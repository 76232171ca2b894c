from __future__ import annotations

import argparse
import io
import json
import logging
import os
import threading
from contextlib import redirect_stderr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.cli import console
from edge.commands.log_arguments import add_log_arguments, start_logs
from edge.errors import CameraError, KeysError
from edge.keys import Kind, generate
from edge.log import CONSOLE_LOGGER, BackgroundHandler, Format, LineFormatter, hide_secrets, logging_to_stderr

log = logging.getLogger("edge.test")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_text(stream: io.StringIO) -> None:
    with logging_to_stderr("text", stream=stream):
        log.warning("the camera is %s", "lost", extra={"camera": "cam0", "why": "no frame", "attempt": 3})
        log.debug("not shown")
        logging.getLogger("library").info("nor this")
        logging.getLogger("library").warning("but this")
    first, second = stream.getvalue().splitlines()
    moment, rest = first.split(" ", 1)
    assert len(moment) == len("2026-11-22T08:17:12.123Z")
    assert moment.endswith("Z")
    assert rest == 'WARNING edge.test: the camera is lost camera=cam0 why="no frame" attempt=3'
    assert second.endswith("WARNING library: but this")
    log.error("after the end")
    assert len(stream.getvalue().splitlines()) == 2


def test_json(stream: io.StringIO) -> None:
    with logging_to_stderr("json", "DEBUG", stream):
        log.debug(
            "a\nb", extra={"camera": "cam0", "attempt": 3, "level": "forged", "score": float("nan"), "none": None}
        )
        try:
            raise ValueError("bad")
        except ValueError:
            log.exception("it failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "DEBUG",
        "logger": "edge.test",
        "message": "a\nb",
        "camera": "cam0",
        "attempt": 3,
        "score": None,
        "none": None,
    }
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("ValueError: bad")


@settings(max_examples=30)
@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["camera", "n", "extra_field"]), st.text() | st.floats()))
def test_every_record_is_one_line(message: str, fields: dict[str, object]) -> None:
    record = logging.makeLogRecord(
        {"name": "edge.test", "levelname": "INFO", "msg": "%s", "args": (message,), **fields}
    )
    assert set(json.loads(LineFormatter("json").format(record))) == {"time", "level", "logger", "message", *fields}
    text = LineFormatter("text").format(record)
    assert text.isprintable()


def test_what_is_printed_for_people_becomes_records_in_json_alone(stream: io.StringIO) -> None:
    before = console.file
    with logging_to_stderr("json", stream=stream):
        console.print("[yellow]warning[/]: the disk is full")
        console.print("two\nlines")
    assert console.file is before
    # What follows goes to stderr as it is then, not as it was.
    with redirect_stderr(io.StringIO()) as later:
        console.print("the end")
    assert later.getvalue() == "the end\n"
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["message"] for record in records] == ["warning: the disk is full", "two", "lines"]
    assert {record["logger"] for record in records} == {CONSOLE_LOGGER}
    with logging_to_stderr("text", stream=stream):
        assert console.file is before


def test_the_error_that_ends_it_is_a_record_where_machines_read(stream: io.StringIO) -> None:
    with pytest.raises(CameraError), logging_to_stderr("json", stream=stream):
        raise CameraError("the camera is lost", "plug it in")
    (record,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (record["message"], record["hint"]) == ("the camera is lost", "plug it in")
    # People are told by the command itself.
    stream.truncate(0)
    with pytest.raises(CameraError), logging_to_stderr("text", stream=stream):
        raise CameraError("the camera is lost", "plug it in")
    assert "plug it in" not in stream.getvalue()


@pytest.mark.parametrize("kind", ["text", "json"])
def test_secrets_are_never_logged(stream: io.StringIO, kind: Format) -> None:
    pair = generate(Kind.CONNECT, "station")
    address = "rtsp://admin:hunter2@10.0.0.5:554/live"

    def work() -> None:
        log.info("opening %s", address, extra={"source": address, "raw": pair.secret, "pair": pair})
        log.info("asking", extra={"password": "hunter2", "api_token": "hunter2", "client_secret": pair.secret.hex()})
        log.info("redi-edge-secret connect %s station", pair.secret.hex())
        console.print(f"opening {address}")
        try:
            raise OSError(f"cannot open {address}")
        except OSError:
            log.exception("failed")
        raise KeysError(f"bad {address}")

    with pytest.raises(KeysError), logging_to_stderr(kind, "DEBUG", stream):
        work()
    told = stream.getvalue()
    assert "hunter2" not in told
    assert "admin" not in told
    assert pair.secret.hex() not in told
    assert repr(pair.secret) not in told
    assert "rtsp://***@10.0.0.5:554/live" in told


def test_what_is_no_secret_stays() -> None:
    assert hide_secrets("rtsp://a:b@c@host/x, http://u@h") == "rtsp://***@host/x, http://***@h"
    for text in (
        "tcp://127.0.0.1:5560",
        "mail a@b.c",
        "/a@b",
        "x://y/z@w",
        "a." * 5000,
        generate(Kind.CONNECT, "a").public.text,
    ):
        assert hide_secrets(text) == text


def test_a_reader_that_takes_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.log._MAX_WAITING", 50)
    reading, writing = os.pipe()
    drained: list[bytes] = []
    with os.fdopen(writing, "w") as stream:
        handler = BackgroundHandler(stream)
        handler.setFormatter(LineFormatter("text"))
        record = logging.makeLogRecord({"name": "edge.test", "msg": "x" * 2000})
        # A pipe holds 64 KiB: it is full at once.
        for _ in range(300):
            handler.handle(record)
        assert handler.dropped > 0
        reader = threading.Thread(target=lambda: drained.extend(iter(lambda: os.read(reading, 1 << 20), b"")))
        reader.start()
        handler.close()
    reader.join()
    os.close(reading)
    assert b"".join(drained).count(b"\n") == 300 - handler.dropped


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    handler = BackgroundHandler(stream)
    handler.handle(logging.makeLogRecord({"name": "edge.test", "msg": "x"}))
    handler.close()
    assert handler.dropped == 1
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_record_that_cannot_be_formatted_is_said_to_be(stream: io.StringIO) -> None:
    handler = BackgroundHandler(stream)
    handler.handle(logging.makeLogRecord({"name": "edge.test", "msg": "%d", "args": ("no number",)}))
    handler.close()
    assert stream.getvalue().startswith("a record of edge.test at ")


def test_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_log_arguments(parser)
    with start_logs(parser.parse_args(["--log-format", "json", "--log-level", "error"])):
        log.warning("hidden")
        log.error("shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "shown"
