"""The codec of Sparkplug B payloads, against protobuf's own."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bridges.sparkplug import DataType, Metric, PayloadError, decode_commands, encode_payload
from edge.bridges.sparkplug_node import REBIRTH, Message, SparkplugNode
from edge.bridges.tags import Outputs, StateCode
from edge.events.schema import Event
from edge.inspection.result import Verdict

# The numbers and types of the public sparkplug_b.proto.
_METRIC = [
    ("name", 1, "STRING"),
    ("alias", 2, "UINT64"),
    ("timestamp", 3, "UINT64"),
    ("datatype", 4, "UINT32"),
    ("is_historical", 5, "BOOL"),
    ("is_transient", 6, "BOOL"),
    ("is_null", 7, "BOOL"),
    ("int_value", 10, "UINT32"),
    ("long_value", 11, "UINT64"),
    ("float_value", 12, "FLOAT"),
    ("double_value", 13, "DOUBLE"),
    ("boolean_value", 14, "BOOL"),
    ("string_value", 15, "STRING"),
    ("bytes_value", 16, "BYTES"),
]
_FIELD = {
    DataType.INT64: "long_value",
    DataType.UINT32: "int_value",
    DataType.UINT64: "long_value",
    DataType.FLOAT: "float_value",
    DataType.DOUBLE: "double_value",
    DataType.BOOLEAN: "boolean_value",
    DataType.STRING: "string_value",
    DataType.DATE_TIME: "long_value",
}


@functools.cache
def payload_class() -> Any:
    """`Payload` as protobuf understands it, of a description made here."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds: Any = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug.proto", package="oracle", syntax="proto2")
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    for name, number, kind in _METRIC:
        metric.field.add(name=name, number=number, type=getattr(kinds, f"TYPE_{kind}"), label=kinds.LABEL_OPTIONAL)
    payload.field.add(name="timestamp", number=1, type=kinds.TYPE_UINT64, label=kinds.LABEL_OPTIONAL)
    payload.field.add(
        name="metrics",
        number=2,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".oracle.Payload.Metric",
    )
    payload.field.add(name="seq", number=3, type=kinds.TYPE_UINT64, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oracle.Payload"))


_ANY_VALUE = st.one_of(
    st.tuples(st.just(DataType.INT64), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.tuples(st.just(DataType.UINT32), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.sampled_from([DataType.UINT64, DataType.DATE_TIME]), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just(DataType.FLOAT), st.floats(width=32)),
    st.tuples(st.just(DataType.DOUBLE), st.floats()),
    st.tuples(st.just(DataType.BOOLEAN), st.booleans()),
    st.tuples(st.just(DataType.STRING), st.text(max_size=300)),
    st.tuples(st.sampled_from(list(DataType)), st.none()),
)
_METRICS = st.builds(
    lambda name, typed, at, historical: Metric(name, *typed, at, historical),
    st.text(max_size=200),
    _ANY_VALUE,
    st.none() | st.integers(0, (1 << 64) - 1),
    st.booleans(),
)


@given(st.lists(_METRICS, max_size=5), st.integers(0, (1 << 64) - 1), st.none() | st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_protobuf_reads_what_we_write(metrics: list[Metric], timestamp_ms: int, seq: int | None) -> None:
    seen = payload_class().FromString(encode_payload(metrics, timestamp_ms=timestamp_ms, seq=seq))
    assert seen.timestamp == timestamp_ms
    assert (seen.seq if seen.HasField("seq") else None) == seq
    assert len(seen.metrics) == len(metrics)
    for metric, got in zip(metrics, seen.metrics, strict=True):
        assert got.name == metric.name
        assert got.datatype == metric.type
        assert got.timestamp == (timestamp_ms if metric.at_ms is None else metric.at_ms)
        assert got.is_historical == metric.historical
        assert got.is_null == (metric.value is None)
        values = {field.name: value for field, value in got.ListFields() if field.name.endswith("_value")}
        if metric.value is None:
            assert values == {}
            continue
        (value,) = values.values()
        assert list(values) == [_FIELD[metric.type]]
        if metric.type is DataType.INT64 and value >= 1 << 63:
            value -= 1 << 64
        assert value == metric.value or (isinstance(value, float) and math.isnan(value))


@given(
    st.lists(
        st.tuples(
            st.text(max_size=200),
            st.one_of(
                st.tuples(st.just("int_value"), st.integers(0, (1 << 32) - 1)),
                st.tuples(st.just("long_value"), st.integers(0, (1 << 64) - 1)),
                st.tuples(st.just("float_value"), st.floats(width=32, allow_nan=False)),
                st.tuples(st.just("double_value"), st.floats(allow_nan=False)),
                st.tuples(st.just("boolean_value"), st.booleans()),
                st.tuples(st.just("string_value"), st.text(max_size=200)),
            ),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_we_read_what_protobuf_writes(metrics: list[tuple[str, tuple[str, Any], int]]) -> None:
    payload = payload_class()(timestamp=1, seq=2)
    for name, (field, value), alias in metrics:
        payload.metrics.add(name=name, alias=alias, timestamp=3, **{field: value})
    assert decode_commands(payload.SerializeToString()) == [(name, value) for name, (_, value), _ in metrics]


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_rubbish_is_refused_or_read_but_nothing_else(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        assert all(isinstance(command.name, str) for command in decode_commands(data))


def an_event(**fields: Any) -> Event:
    values: dict[str, Any] = {
        "boot_id": "b" * 16,
        "journal_id": "j" * 16,
        "seq": 7,
        "camera": "cam0",
        "source": "test",
        "frame_id": 3,
        "verdict": Verdict.NG,
        "captured_at_ns": 1_700_000_000_000_000_000,
        "decided_at_ns": 1_700_000_000_050_000_000,
        "bundle_id": "0" * 16,
        "calibration_id": "1" * 16,
        "score": 1.5,
        "peak": 2.0,
        "threshold": 0.75,
        "pixel_threshold": 0.5,
        "frame_size": (640, 480),
        "mask_size": (64, 48),
        "part_id": "41.plc1.x.1",
        "encoder": -5,
    }
    return Event(**(values | fields))


def kinds(messages: list[Message]) -> list[str]:
    return [message.topic.split("/")[2] for message in messages]


def test_the_node_lives_and_dies_by_the_rules() -> None:
    decode = payload_class().FromString
    node = SparkplugNode("plant", "station1", "cam0")
    will = node.death()
    told = node.begin()
    # Before the station is there, there is no device; what was missed is told all the same.
    told += node.status(Outputs(state=StateCode.PREOPERATIONAL))
    told += node.event(an_event())
    told += node.status(Outputs(state=StateCode.READY, ready=True))
    told += node.status(Outputs(state=StateCode.READY, ready=True, heartbeat=9))
    told += node.status(Outputs(state=StateCode.HALTED))
    told += node.status(Outputs(state=StateCode.READY, ready=True))
    assert kinds(told) == ["NBIRTH", "DBIRTH", "DDATA", "DDATA", "DDEATH", "DBIRTH"]
    assert [message.topic.split("/")[3:] for message in told[:2]] == [["station1"], ["station1", "cam0"]]
    payloads = [decode(message.payload) for message in told]
    assert [payload.seq for payload in payloads] == [0, 1, 2, 3, 4, 5]
    (death,) = decode(will.payload).metrics
    assert not decode(will.payload).HasField("seq")
    births = {metric.name: metric for metric in payloads[0].metrics}
    assert (death.name, death.long_value) == ("bdSeq", births["bdSeq"].long_value)
    assert births[REBIRTH].boolean_value is False
    # A birth names every metric that data may name.
    assert {metric.name for metric in payloads[2].metrics} <= {metric.name for metric in payloads[1].metrics}
    event = {metric.name: metric for metric in payloads[2].metrics}
    assert event["Result/Verdict"].string_value == "ng"
    assert event["Result/Encoder"].long_value == (1 << 64) - 5
    assert event["Result/WorstX"].is_null
    assert event["Result/Score"].timestamp == 1_700_000_000_050
    # It was decided before this connection was there.
    assert event["Result/Score"].is_historical
    again = [decode(message.payload) for message in node.birth()]
    assert [payload.seq for payload in again] == [0, 1]
    assert decode(node.death().payload).metrics[0].long_value == (death.long_value + 1) % 256


def test_only_a_rebirth_command_is_one() -> None:
    node = SparkplugNode("plant", "station1", "cam0")

    def command(name: str, value: Any, kind: DataType = DataType.BOOLEAN) -> bytes:
        return encode_payload([Metric(name, kind, value)], timestamp_ms=1, seq=0)

    topic = "spBv1.0/plant/NCMD/station1"
    assert node.asks_rebirth(Message(topic, command(REBIRTH, True)))
    for payload in (command(REBIRTH, False), command("Node Control/Reboot", True), b"\xff\xff", b"", b"x" * 70_000):
        assert not node.asks_rebirth(Message(topic, payload))
    assert not node.asks_rebirth(Message("spBv1.0/plant/NCMD/other", command(REBIRTH, True)))
