"""A Sparkplug B edge node with one device: what it publishes, as topics and payloads; it sends nothing itself.

The node is the station, the device one of its cameras: it is born when the station runs, and dies when it is lost.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from edge import __version__
from edge.bridges.finding import finding_of
from edge.bridges.sparkplug import DataType, Metric, PayloadError, decode_commands, encode_payload
from edge.bridges.tags import ErrorCode, Outputs, StateCode
from edge.events.schema import Event

REBIRTH = "Node Control/Rebirth"
_AWAY = (StateCode.PREOPERATIONAL, StateCode.HALTED)

#: What a device tells of the last event; null before the first.
RESULT_METRICS = {
    "Result/Verdict": DataType.STRING,
    "Result/PartId": DataType.STRING,
    "Result/Encoder": DataType.INT64,
    "Result/Score": DataType.DOUBLE,
    "Result/Threshold": DataType.DOUBLE,
    "Result/RegionCount": DataType.UINT32,
    "Result/WorstX": DataType.DOUBLE,
    "Result/WorstY": DataType.DOUBLE,
    "Result/WorstXMm": DataType.DOUBLE,
    "Result/WorstYMm": DataType.DOUBLE,
    "Result/Reason": DataType.STRING,
    "Result/Source": DataType.STRING,
    "Result/FrameId": DataType.INT64,
    "Result/CapturedAt": DataType.DATE_TIME,
    "Result/DecidedAt": DataType.DATE_TIME,
    "Result/BundleId": DataType.STRING,
    "Result/CalibrationId": DataType.STRING,
    "Result/JournalId": DataType.STRING,
    "Result/Seq": DataType.UINT64,
}


class Message(NamedTuple):
    """What is to be published."""

    topic: str
    payload: bytes


class SparkplugNode:
    """One edge node and its device, over all its connections.

    Args:
        group, node, device: the ids in its topics, `spBv1.0/GROUP/DDATA/NODE/DEVICE`.
    """

    def __init__(self, group: str, node: str, device: str) -> None:
        self._prefix, self._node, self._device = f"spBv1.0/{group}", node, device
        #: Where commands come.
        self.command_topic = f"{self._prefix}/NCMD/{node}"
        # Any number will do that the last connection of the last run did not have.
        self._birth_death = int(time.time()) % 256
        self._seq = 0
        self._born = False
        self._began_ms = 0
        self._outputs = Outputs()
        self._result: list[Metric] = [Metric(name, kind, None) for name, kind in RESULT_METRICS.items()]

    def death(self) -> Message:
        """Return the will of the next connection, which is also its last message."""
        self._birth_death = (self._birth_death + 1) % 256
        return self.last_words()

    def last_words(self) -> Message:
        """Return what this connection's end tells."""
        payload = encode_payload([self._birth_death_metric()], timestamp_ms=_now_ms())
        return Message(f"{self._prefix}/NDEATH/{self._node}", payload)

    def birth(self) -> list[Message]:
        """Return what begins a connection, and answers a rebirth command."""
        self._seq, born, self._began_ms = -1, self._born, _now_ms()
        metrics = [
            self._birth_death_metric(),
            Metric(REBIRTH, DataType.BOOLEAN, False),
            Metric("Properties/Software", DataType.STRING, f"redi-edge {__version__}"),
        ]
        messages = [self._message("NBIRTH", metrics, device=False)]
        return [*messages, self._device_birth()] if born else messages

    def begin(self) -> list[Message]:
        """Return what begins a new connection: its device is born when there is something to tell of it."""
        self._born = False
        return self.birth()

    def status(self, outputs: Outputs) -> list[Message]:
        """Return what tells the station's state; nothing where it is told already."""
        before, self._outputs = self._status_metrics(), outputs
        changed = [metric for metric, old in zip(self._status_metrics(), before, strict=True) if metric != old]
        away = outputs.state in _AWAY
        if away and not self._born:
            return []
        if away:
            self._born = False
            return [self._message("DDEATH", [])]
        if not self._born:
            return [self._device_birth()]
        return [self._message("DDATA", changed)] if changed else []

    def event(self, event: Event) -> list[Message]:
        """Return what tells an event."""
        messages = [] if self._born else [self._device_birth()]
        self._result = result_metrics(event, historical=event.decided_at_ns // 1_000_000 < self._began_ms)
        return [*messages, self._message("DDATA", self._result)]

    def asks_rebirth(self, message: Message) -> bool:
        """Return whether a received message is a rebirth command."""
        if message.topic != self.command_topic:
            return False
        try:
            commands = decode_commands(message.payload)
        except PayloadError:
            return False
        return any(command.name == REBIRTH and command.value is True for command in commands)

    def _device_birth(self) -> Message:
        self._born = True
        last = [metric._replace(historical=False) for metric in self._result]
        return self._message("DBIRTH", [*self._status_metrics(), *last])

    def _status_metrics(self) -> list[Metric]:
        outputs = self._outputs
        return [
            Metric("Station/State", DataType.STRING, StateCode(outputs.state).name.lower()),
            Metric("Station/Ready", DataType.BOOLEAN, outputs.ready),
            Metric("Station/Error", DataType.STRING, ErrorCode(outputs.error_code).name.lower()),
        ]

    def _birth_death_metric(self) -> Metric:
        return Metric("bdSeq", DataType.INT64, self._birth_death)

    def _message(self, kind: str, metrics: list[Metric], *, device: bool = True) -> Message:
        self._seq = (self._seq + 1) % 256
        topic = f"{self._prefix}/{kind}/{self._node}" + (f"/{self._device}" if device else "")
        return Message(topic, encode_payload(metrics, timestamp_ms=_now_ms(), seq=self._seq))


def result_metrics(event: Event, *, historical: bool = False) -> list[Metric]:
    """Return an event as metrics, those of `RESULT_METRICS` in order."""
    finding = finding_of(event)
    worst = [finding.worst_x, finding.worst_y, finding.worst_x_mm, finding.worst_y_mm]
    values = [
        event.verdict.value,
        event.part_id,
        event.encoder,
        event.score,
        event.threshold,
        finding.region_count,
        *(None if value < 0 else value for value in worst),
        event.reason,
        event.source,
        event.frame_id,
        event.captured_at_ns // 1_000_000,
        event.decided_at_ns // 1_000_000,
        event.bundle_id,
        event.calibration_id,
        event.journal_id,
        event.seq,
    ]
    at_ms = event.decided_at_ns // 1_000_000
    return [
        Metric(name, kind, value, at_ms, historical)
        for (name, kind), value in zip(RESULT_METRICS.items(), values, strict=True)
    ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
