"""One connection to an MQTT broker, from its begin to its end: no reconnecting, and no silence about what was lost."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paho.mqtt.client import (
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
    error_string,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.bridges.base import PlcLostError
from edge.errors import BridgeError

# Received messages that wait; more come from nobody who means well.
_MAX_WAITING = 100


@dataclass(frozen=True)
class Broker:
    """Where a broker is, and how to be let in.

    Attributes:
        version: of MQTT, `5` or `3.1.1`.
        context: for TLS; None for plain TCP.
        timeout_s: for connecting, and for each acknowledgement.
        keepalive_s: a broker that hears nothing for one and a half of it gives us up.
    """

    host: str
    port: int
    client_id: str
    version: str
    user: str
    password: str
    context: ssl.SSLContext | None
    timeout_s: float
    keepalive_s: int

    @property
    def where(self) -> str:
        """Its address."""
        return f"the broker {self.host}:{self.port}"


class Received(NamedTuple):
    """A message of the broker's; `retained`: it may have been written any time ago."""

    topic: str
    payload: bytes
    retained: bool


class Link:
    """A connection; all calls come from one thread.

    Args:
        broker: to whom.
        wake: called, from another thread, when a message has come or the connection is lost.
    """

    def __init__(self, broker: Broker, wake: Callable[[], None]) -> None:
        self._broker, self._wake = broker, wake
        self._changed = threading.Condition()
        self._connected = self._ended = False
        self._lost = ""
        # By message id: topic and until when, of what is under way; and what was acknowledged before that was noted.
        self._under_way: dict[int, tuple[str, float]] = {}
        self._early: dict[int, ReasonCode] = {}
        self._subscribed: list[ReasonCode] | None = None
        self._inbox: deque[Received] = deque(maxlen=_MAX_WAITING)
        five = broker.version == "5"
        client = self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            clean_session=None if five else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = broker.timeout_s
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        if broker.user:
            client.username_pw_set(broker.user, broker.password)
        if broker.context is not None:
            client.tls_set_context(broker.context)

    def open(self, will: tuple[str, bytes, bool], topics: Sequence[str]) -> None:
        """Connect, leave a will (topic, payload, retain), and subscribe.

        Raises:
            PlcLostError: the broker is not there, or lets us not in.
        """
        where = self._broker.where
        topic, payload, retain = will
        self._client.will_set(topic, payload, qos=1, retain=retain)
        try:
            self._client.connect(self._broker.host, self._broker.port, keepalive=self._broker.keepalive_s)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise PlcLostError(f"no connection to {where}: {reason}") from error
        self._client.loop_start()
        if not self._wait(lambda: self._connected):
            raise PlcLostError(f"{where} does not answer within {self._broker.timeout_s:g} s")
        if topics:
            self._client.subscribe([(each, 1) for each in topics])
            if not self._wait(lambda: self._subscribed is not None):
                raise PlcLostError(f"{where} does not answer to subscribing to {topics[0]}")
            for each, reason_code in zip(topics, self._subscribed or [], strict=True):
                if reason_code.is_failure:
                    raise PlcLostError(f"{where} does not let us subscribe to {each}: {reason_code}")

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send a message on its way; several may be, `settle` waits for them, and `check` notes what takes too long.

        Raises:
            PlcLostError: the connection is lost; whether the broker has the message is not known.
        """
        self.check()
        sent = self._client.publish(topic, payload, qos=qos, retain=retain)
        if sent.rc:
            raise PlcLostError(f"{topic} cannot be published at {self._broker.where}: {error_string(sent.rc)}")
        with self._changed:
            # Not before: the client calls us back with a lock of its own held.
            early = self._early.pop(sent.mid, None)
            if early is None:
                self._under_way[sent.mid] = topic, time.monotonic() + self._broker.timeout_s
            else:
                self._judge(topic, early)

    def settle(self) -> None:
        """Return when the broker has acknowledged all that is under way.

        Raises:
            PlcLostError: it has not; whether it has a message is not known.
        """
        with self._changed:
            while self._under_way and not self._lost:
                until = min(until for _, until in self._under_way.values())
                self._changed.wait(max(0.0, until - time.monotonic()))
                self._check()
            self._check()

    def check(self) -> None:
        """Do nothing while all is well.

        Raises:
            PlcLostError: the connection is lost, or the broker has refused a message, or not acknowledged it in time.
        """
        with self._changed:
            self._check()

    def _check(self) -> None:
        now = time.monotonic()
        late = next((topic for topic, until in self._under_way.values() if now > until), None)
        if not self._lost and late is not None:
            self._lost = f"{self._broker.where} does not acknowledge {late} within {self._broker.timeout_s:g} s"
        if self._lost:
            raise PlcLostError(self._lost)

    def _judge(self, topic: str, reason: ReasonCode) -> None:
        if reason.is_failure:
            self._lost = self._lost or f"{self._broker.where} refuses {topic}: {reason}"

    def received(self) -> list[Received]:
        """Return what has come since the last call."""
        with self._changed:
            messages = list(self._inbox)
            self._inbox.clear()
        return messages

    def close(self) -> None:
        """Disconnect; the broker forgets the will, unless the connection is lost already."""
        self._client.disconnect()
        if self._connected:
            with contextlib.suppress(PlcLostError):
                self._wait(lambda: self._ended)
        transport: Any = self._client.socket()
        if transport is not None:
            # A broker that reads no more must not hold up the thread that is to end.
            with contextlib.suppress(OSError):
                transport.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: condition() or bool(self._lost), self._broker.timeout_s)
            if condition():
                return True
            if self._lost:
                raise PlcLostError(self._lost)
            return False

    # Called from the client's thread

    @staticmethod
    def _on_socket_open(client: Client, userdata: object, transport: Any) -> None:
        # A small message must not wait until the one before it has been acknowledged, which takes some 40 ms.
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: Client, userdata: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        with self._changed:
            if reason.is_failure:
                self._lost = f"{self._broker.where} does not let us in: {reason}"
            else:
                self._connected = True
            self._changed.notify_all()

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._lost = self._lost or f"the connection to {self._broker.where} is lost: {reason}"
            self._changed.notify_all()
        self._wake()

    @staticmethod
    def _acknowledge(client: Client) -> None:
        """Acknowledge what has come by TCP at once: until then, some 40 ms, a broker may keep its next message back."""
        transport: Any = client.socket()
        if transport is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _on_publish(
        self, client: Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._acknowledge(client)
        with self._changed:
            sent = self._under_way.pop(mid, None)
            if sent is None:
                self._early[mid] = reason
            else:
                self._judge(sent[0], reason)
            self._changed.notify_all()

    def _on_subscribe(
        self, client: Client, userdata: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        with self._changed:
            self._subscribed = reasons
            self._changed.notify_all()

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self._acknowledge(client)
        with self._changed:
            self._inbox.append(Received(message.topic, bytes(message.payload), message.retain))
        self._wake()


def tls_context(ca_file: str, certificate_file: str, key_file: str) -> ssl.SSLContext:
    """Return what TLS needs: whom to trust (the system's authorities where empty), and who we are.

    Raises:
        BridgeError: a file is missing or none; names it.
    """
    files = [Path(each) for each in (ca_file, certificate_file, key_file) if each]
    for path in files:
        if not path.is_file():
            raise BridgeError(f"{path}: no such file", "see the keys ca_file, certificate_file and key_file")
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if certificate_file:
            context.load_cert_chain(certificate_file, key_file or None)
    except (ssl.SSLError, OSError) as error:
        names = ", ".join(map(str, files))
        raise BridgeError(f"{names}: cannot be used for TLS: {error}", "they must be PEM, and fit together") from error
    return context
