"""What is fuzzed: each target takes any bytes, and may refuse them only in the way that its callers expect.

Used by the property tests beside it and by `long_run.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from edge.bundle import Bundle
from edge.commands.run_arguments import build_parser
from edge.config import read_station_file
from edge.container import write_container
from edge.errors import BundleError, UsageError
from edge.events import requests
from edge.events.codec import EventMessage, MessageError, decode_message, event_to_json
from edge.events.control import _Operation
from edge.events.requests import Replay, Reply, Request, RequestError, StatusRequest, Switch, Trigger
from edge.events.schema import EVENT_TOPIC, STATUS_TOPIC
from tests.edge.forging import contents
from tests.tiny_bundle import write_tiny_bundle

OPERATIONS = {
    name: _Operation(struct, lambda request: request, slow=False)
    for name, struct in (("trigger", Trigger), ("replay", Replay), ("switch", Switch), ("status", StatusRequest))
}
_envelope = msgspec.msgpack.Decoder(Request)
_reply = msgspec.msgpack.Decoder(Reply)


def split(data: bytes) -> list[bytes]:
    """Return a message's parts: each is preceded by its length in two bytes, the last one is the rest."""
    parts: list[bytes] = []
    while len(data) > 2 and len(parts) < 4:
        size = int.from_bytes(data[:2], "little")
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return [*parts, data]


def joined(parts: list[bytes]) -> bytes:
    """The reverse of `split`, for seeds."""
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts[:-1]) + parts[-1]


def events(data: bytes) -> None:
    """What a subscriber receives."""
    for parts in (split(data), [f"{EVENT_TOPIC}cam0".encode(), data, b""], [f"{STATUS_TOPIC}cam0".encode(), data]):
        with contextlib.suppress(MessageError):
            message = decode_message(parts)
            if isinstance(message, EventMessage):
                event_to_json(message)
                # A mask of the largest size takes a while to unpack.
                if message.event.mask_size[0] * message.event.mask_size[1] < 1 << 20:
                    with contextlib.suppress(ValueError):
                        assert message.mask_array().shape == message.event.mask_size[::-1]


def commands(data: bytes) -> None:
    """What a station is asked, and what a client is answered."""
    for operation in OPERATIONS.values():
        with contextlib.suppress(RequestError):
            again = requests.encode(operation(data))
            assert requests.encode(operation(again)) == again
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        assert _envelope.decode(data).id >= 0
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        reply = _reply.decode(data)
        msgspec.msgpack.decode(reply.result, type=requests.Replayed)


@cache
def options() -> dict[str, str]:
    """The options that a file may set, as `edge-run` collects them."""
    return {
        text[2:]: "flag" if action.nargs == 0 else "value"
        for action in build_parser()._actions
        for text in action.option_strings
        if text.startswith("--") and text[2:] not in ("camera", "config", "help")
    }


def configuration(data: bytes) -> None:
    """A station's file."""
    with named(data) as path, contextlib.suppress(UsageError):
        found = read_station_file(path, options())
        assert all(word.startswith("--") for word in found.words)
        names = [camera.name for camera in found.cameras]
        assert len(names) == len(set(names))


# The members whose content is parsed, after the digests have been found right.
_PARSED = ("manifest.json", "calibration.json", "golden.json", "prompts/names.json", "trained.json", "signature.json")


@cache
def _whole() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the members of a bundle that is as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        members = contents(write_tiny_bundle(Path(folder) / "redi.plan").path)
    return json.loads(members.pop("manifest.json")), members


def bundle(data: bytes) -> None:
    """A bundle; and one whose members are these, every digest right: the first byte says which."""
    _open_bundle(data)
    manifest, members = _whole()
    chosen = _PARSED[data[0] % len(_PARSED)] if data else _PARSED[0]
    if chosen == "manifest.json":
        table = data[1:]
    else:
        members = {**members, chosen: data[1:]}
        sizes = {name: {"size": len(data), "sha256": sha256(data).hexdigest()} for name, data in members.items()}
        table = json.dumps({**manifest, "members": sizes}).encode()
    forged = io.BytesIO()
    write_container(forged, {"manifest.json": table, **members})
    _open_bundle(forged.getvalue())


def _open_bundle(data: bytes) -> None:
    with named(data) as path, contextlib.suppress(BundleError):
        Bundle.open(path).close()


@contextlib.contextmanager
def named(data: bytes) -> Iterator[Path]:
    """A file in memory: what is fuzzed opens it by its path."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "events": events,
    "commands": commands,
    "configuration": configuration,
    "bundle": bundle,
}


def seeds() -> dict[str, list[bytes]]:
    """Inputs that are whole, to begin with, by target."""
    golden = Path(__file__).parents[1] / "events" / "golden"
    found = sorted({path.name.split(".")[0] for path in golden.iterdir()})
    messages = [[path.read_bytes() for path in sorted(golden.glob(f"{name}.[0-9]-*"))] for name in found]
    manifest, members = _whole()
    asked = [
        ("trigger", Trigger("part 1", "cam0", 7, 50.0)),
        ("replay", Replay("cam0", "journal", 5, 10)),
        ("switch", Switch("/redi.plan", "cam0")),
        ("status", StatusRequest("cam0")),
    ]
    answered = requests.Replayed("j", 1, 9, 4, [(b"header", b"mask")], [requests.Lost(2, 3, "lost")])
    return {
        "events": [joined(parts) for parts in messages] + [parts[1] for parts in messages],
        "commands": [requests.encode_request(op, 1, request) for op, request in asked]
        + [requests.encode({"id": 1, "result": answered})],
        "configuration": [STATION_FILE.encode()],
        "bundle": [b"\0" + json.dumps(manifest).encode()]
        + [bytes([number]) + members[name] for number, name in enumerate(_PARSED) if name in members],
    }


STATION_FILE = """\
engine = "redi.plan"
publish = "ipc:///run/redi/events"
threads = 2
follow = true

[[camera]]
name = "left"
source = "sim:rate=20"
trigger = "request"
deadline-ms = 80.5

[[camera]]
name = "right"
source = "/dev/video0"
trigger = "gpio:/dev/gpiochip0:17:falling"
trigger-window-ms = 200
frame-timeout = 2
slots = 6
count = 100
"""
