"""A real MQTT broker, and a client that notes what it hears."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion


def _program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


class Mosquitto:
    """Debian's broker; where `durable`, what it has acknowledged outlives its being killed, at some ms a message."""

    def __init__(self, folder: Path, *lines: str, anonymous: bool = True, port: int = 0, durable: bool = True) -> None:
        self._program = _program("mosquitto")
        with socket.create_server(("127.0.0.1", port)) as probe:
            self.port = probe.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            "\n".join(
                [
                    "user root",
                    f"allow_anonymous {str(anonymous).lower()}",
                    f"persistence {str(durable).lower()}",
                    "log_type none",
                    "set_tcp_nodelay true",
                    f"persistence_location {folder}/",
                    "autosave_on_changes true",
                    "autosave_interval 1",
                    f"listener {self.port} 127.0.0.1",
                    *lines,
                    "",
                ]
            )
        )
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([self._program, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, "the broker does not start"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def hash_password(folder: Path, user: str, password: str) -> Path:
    path = folder / "broker-passwords"
    path.touch(0o600)
    subprocess.run([_program("mosquitto_passwd"), "-b", str(path), user, password], check=True, capture_output=True)
    return path


class Listener:
    """Subscribes to everything; its session outlives the broker's and its own connections."""

    def __init__(self, port: int) -> None:
        self._messages: list[tuple[str, bytes, bool]] = []
        self._subscribed = threading.Event()
        client = self._client = Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
        client.reconnect_delay_set(1, 1)
        client.on_message = self._on_message
        client.on_connect = lambda *_: client.subscribe([("redi/#", 1), ("spBv1.0/#", 1)])
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert self._subscribed.wait(10)

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self._messages.append((message.topic, bytes(message.payload), message.retain))

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for each, payload, _ in list(self._messages) if each == topic]

    def objects(self, topic: str) -> list[Any]:
        return [json.loads(payload) for payload in self.payloads(topic)]

    def topics(self) -> list[str]:
        return [topic for topic, _, _ in list(self._messages)]

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as something is so."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.002)
