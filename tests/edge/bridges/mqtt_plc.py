"""A PLC, or the gateway before it, that triggers and takes verdicts over an MQTT broker."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from tests.edge.bridges.modbus_plc import Scan, Values

STATION, CAMERA = "plant", "cam0"
_BASE = f"redi/{STATION}/{CAMERA}"
_HEARD = ("status", "heartbeat", "answer", "result")
# A command that nobody has answered by then is sent again.
_REPEAT_S = 1.0
_VERDICTS = {"ok": 1, "ng": 2, "late": 3, "fault": 4}


class MqttPlc:
    """Shows the messages to its program as signals, and sends what the program sets."""

    def __init__(self, scan: Scan, port: int, period_s: float = 0.005) -> None:
        self._scan, self._period_s = scan, period_s
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._results: deque[dict[str, Any]] = deque()
        self._seen: Values = dict.fromkeys(
            ("Ready", "TriggerAck", "ResultValid", "Error", "Heartbeat", "CommandEcho", "PartId", "Verdict"), 0
        )
        self._out: Values = {}
        self._asked_at = 0.0
        client = self._client = Client(CallbackAPIVersion.VERSION2, client_id="plc")
        client.reconnect_delay_set(1, 1)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.connect_async("127.0.0.1", port)
        client.loop_start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _on_socket_open(self, client: Client, userdata: object, opened: Any) -> None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(self, client: Client, *_: object) -> None:
        client.subscribe([(f"{_BASE}/{kind}", 1) for kind in _HEARD])

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self._inbox.append((message.topic.rpartition("/")[2], bytes(message.payload)))

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            while self._inbox:
                self._take(*self._inbox.popleft())
            before, self._out = self._out, self._scan(dict(self._seen))
            self._act(before, self._out)

    def _take(self, kind: str, payload: bytes) -> None:
        seen, out, value = self._seen, self._out, json.loads(payload)
        if kind == "heartbeat":
            seen["Heartbeat"] = value
        elif kind == "status":
            seen["Ready"], seen["Error"] = value.get("ready", False), value.get("error", "none") != "none"
        elif kind == "result":
            self._results.append(value)
        elif "command" in value:
            if value["command"] == "reset" and value["done"] and out.get("Command") == 1:
                # What came before is of parts that are forgotten.
                self._results.clear()
                seen["CommandEcho"] = 1
        elif value.get("taken") and value["part"] == out.get("PartId") and out.get("Trigger"):
            seen["TriggerAck"] = True

    def _act(self, before: Values, out: Values) -> None:
        seen = self._seen
        now = time.monotonic()
        if out.get("Trigger") and not before.get("Trigger"):
            self._send("trigger", {"part": out["PartId"], "encoder": out["Encoder"]})
        if not out.get("Trigger"):
            seen["TriggerAck"] = False
        if out["Command"] == 0:
            seen["CommandEcho"] = 0
        elif seen["Heartbeat"] and not seen["CommandEcho"] and now >= self._asked_at + _REPEAT_S:
            # Once the bridge is heard, it hears us.
            self._asked_at = now
            self._send("command", {"command": "reset"})
        if out.get("ErrorAck") and not before.get("ErrorAck"):
            self._send("command", {"command": "acknowledge"})
        if out.get("ResultAck"):
            seen["ResultValid"] = False
        elif not seen["ResultValid"] and self._results:
            result = self._results.popleft()
            seen.update(ResultValid=True, PartId=result["part"], Verdict=_VERDICTS[result["verdict"]])

    def _send(self, kind: str, value: Values) -> None:
        # Not kept for a broker that comes back later: the part would be gone by then.
        if self._client.is_connected():
            self._client.publish(f"{_BASE}/{kind}", json.dumps(value), qos=0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()
