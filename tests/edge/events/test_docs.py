"""`docs/events.md` says what the schema says, and its programs work."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.events import codec, requests, schema
from edge.events.preview import Preview
from edge.events.publisher import Publisher
from edge.events.rle import decode_mask, encode_mask
from edge.events.schema import Event, Status
from edge.inspection.result import Region, Verdict

TEXT = (Path(__file__).parents[3] / "docs" / "events.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"# {title}\n")[1].split("\n#")[0]


def table(title: str) -> list[tuple[str, ...]]:
    rows = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("| `")]
    return [tuple(cell.strip() for cell in row) for row in rows]


def code(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1]


def type_name(info: Any) -> str:
    match info:
        case msgspec.inspect.IntType():
            return "int"
        case msgspec.inspect.BoolType():
            return "bool"
        case msgspec.inspect.FloatType():
            return "float"
        case msgspec.inspect.StrType() | msgspec.inspect.EnumType():
            return "str"
        case msgspec.inspect.NoneType():
            return "nil"
        case msgspec.inspect.UnionType():
            return " or ".join(type_name(each) for each in info.types)
        case msgspec.inspect.TupleType():
            (name,) = {type_name(each) for each in info.item_types}
            return f"array of {len(info.item_types)} {name}"
        case msgspec.inspect.ListType():
            return f"array of {type_name(info.item_type)}"
        case msgspec.inspect.StructType():
            return "map"
        case msgspec.inspect.DictType():
            return f"map of {type_name(info.key_type)} to {type_name(info.value_type)}"
    raise AssertionError(info)


@pytest.mark.parametrize(
    ("title", "struct"),
    [("Event header", Event), ("Status header", Status), ("Regions", Region), ("Previews", Preview)],
)
def test_the_tables_list_the_fields_and_types_of_the_schema(title: str, struct: type[msgspec.Struct]) -> None:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    documented = {row[0].strip("`"): row[1] for row in table(title)}
    assert documented == {field.encode_name: type_name(field.type) for field in info.fields}


def test_the_tables_list_verdicts_topics_and_limits() -> None:
    assert [row[0].strip("`") for row in table("Verdicts")] == [verdict.value for verdict in Verdict]
    assert f"`{schema.EVENT_TOPIC}CAMERA`" in TEXT
    assert f"`{schema.STATUS_TOPIC}CAMERA`" in TEXT
    assert f"schema {schema.SCHEMA_VERSION}" in TEXT
    assert f"at most {codec.MAX_HEADER_BYTES >> 20} MiB" in TEXT
    assert f"at most {codec.MAX_MASK_BYTES >> 20} MiB" in TEXT
    assert f"at most {schema.MAX_REGIONS:,}, the largest" in TEXT


def test_requests_are_described() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("Journal and replay")}
    for struct in (requests.Request, requests.Reply, requests.Replayed, requests.Triggered):
        info = msgspec.inspect.type_info(struct)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            assert field.encode_name in rows
            if not isinstance(field.type, (msgspec.inspect.ListType, msgspec.inspect.RawType)):
                assert rows[field.encode_name] == type_name(field.type)
    text = section("Journal and replay")
    for name, value in vars(requests).items():
        if name.isupper() and isinstance(value, str):
            assert f"`{value}`" in text
    for struct in (requests.Replay, requests.Lost, requests.Trigger, requests.Switch, requests.Switched):
        for name in struct.__struct_fields__:
            assert f"`{name}`" in text
    assert f"at most {requests.MAX_REQUEST_BYTES >> 10} KiB" in text
    assert f"at most {requests.MAX_REPLY_BYTES >> 20} MiB" in text
    assert f"`limit` ({requests.MAX_REPLAY_EVENTS})" in text


def python_example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    msgpack = types.ModuleType("msgpack")
    msgpack.unpackb = msgspec.msgpack.decode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msgpack", msgpack)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code("python"), "docs/events.md", "exec"), names)
    return names


def test_the_python_example_reads_a_station(
    monkeypatch: pytest.MonkeyPatch, make_event: Callable[..., Event], capsys: pytest.CaptureFixture[str]
) -> None:
    example = python_example(monkeypatch)
    mask = np.zeros((8, 16), bool)
    mask[2:5, 3:14] = True
    with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
        received: list[Any] = []
        thread = threading.Thread(target=lambda: received.extend(example["watch"](publisher.endpoint, 2)))
        thread.start()
        assert publisher.outlet.wait_for_subscriber(10.0)
        publisher.settle()
        sent = [make_event(seq=publisher.next_seq()), make_event(seq=publisher.next_seq(), score=None)]
        publisher.publish(sent[0], encode_mask(np.packbits(mask, axis=1)))
        publisher.publish(sent[1], b"")
        thread.join()
    assert [msgspec.convert(event, Event) for event, _ in received] == sent
    assert np.array_equal(received[0][1], mask)
    assert not received[1][1].any()
    assert "redi/event/cam0 1 broken_large/000.png ng 1.25" in capsys.readouterr().out


@pytest.fixture(scope="module")
def c_decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, tuple[int, int]], np.ndarray | None]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")
    (folder / "rle.c").write_text(code("c"))
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", folder / "rle.so", folder / "rle.c"], check=True)
    function = ctypes.CDLL(str(folder / "rle.so")).decode_mask
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_long, ctypes.c_void_p]

    def decode(counts: bytes, size: tuple[int, int]) -> np.ndarray | None:
        mask = np.full(size[::-1], 7, np.uint8)
        return None if function(counts, len(counts), *size, mask.ctypes.data) else mask

    return decode


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.5, 1.0]))
def test_the_c_example_decodes_masks(c_decoder: Any, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((40, 64)) < share
    decoded = c_decoder(encode_mask(np.packbits(mask, axis=1)), (64, 40))
    assert np.array_equal(decoded, mask)


@given(st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnop", max_size=30))
def test_the_c_example_accepts_what_the_package_accepts(c_decoder: Any, text: str) -> None:
    counts = text.encode()
    decoded = c_decoder(counts, (8, 6))
    try:
        expected = decode_mask(counts, (8, 6))
    except ValueError:
        expected = None
    assert (decoded is None) == (expected is None)
    assert expected is None or np.array_equal(decoded, expected)
