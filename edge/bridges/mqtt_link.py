"""One connection to an MQTT broker, from its begin to its end: no reconnecting, and no silence about what was lost."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
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
        self._acknowledged: dict[int, ReasonCode] = {}
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
        """Publish; with QoS 1, return when the broker has acknowledged it.

        Raises:
            PlcLostError: it has not; whether it has the message is not known.
        """
        self.check()
        with self._changed:
            self._acknowledged.clear()
        sent = self._client.publish(topic, payload, qos=qos, retain=retain)
        if sent.rc:
            raise PlcLostError(f"{topic} cannot be published at {self._broker.where}: {error_string(sent.rc)}")
        if qos == 0:
            return
        if not self._wait(lambda: sent.mid in self._acknowledged):
            raise PlcLostError(f"{self._broker.where} does not acknowledge {topic} within {self._broker.timeout_s:g} s")
        reason_code = self._acknowledged[sent.mid]
        if reason_code.is_failure:
            raise PlcLostError(f"{self._broker.where} refuses {topic}: {reason_code}")

    def check(self) -> None:
        """Do nothing while connected.

        Raises:
            PlcLostError: the connection is lost.
        """
        with self._changed:
            if self._lost:
                raise PlcLostError(self._lost)

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

    def _on_publish(
        self, client: Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        with self._changed:
            self._acknowledged[mid] = reason
            self._changed.notify_all()

    def _on_subscribe(
        self, client: Client, userdata: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        with self._changed:
            self._subscribed = reasons
            self._changed.notify_all()

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
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
