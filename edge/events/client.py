"""The asking side of a station's control socket."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from edge.errors import PublishError
from edge.events.bind import set_keepalive
from edge.events.endpoint import check_endpoint
from edge.events.requests import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Reply, RequestError, encode_request
from edge.events.security import ClientKeys, secure_client

_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 200
_CONNECT_TIMEOUT_MS = 1000
_MONITOR = "inproc://control-connection"

_Result = TypeVar("_Result", bound=msgspec.Struct)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


class ControlClient:
    """Asks a station, which may stop and start again at any time.  All calls must come from one thread.

    Args:
        endpoint: the station's control endpoint, see `edge.events.control.control_endpoint`.
        keys: for a station on TCP that admits clients by key.

    Raises:
        PublishError: the endpoint is invalid.
        KeysError: a key is not one for connecting.
    """

    def __init__(self, endpoint: str, *, keys: ClientKeys | None = None) -> None:
        self.endpoint = check_endpoint(endpoint)
        self._number = 0
        self._context: zmq.Context[Any] = zmq.Context()
        #: To be polled for answers.
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_REPLY_BYTES),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
            (zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS),
            (zmq.IPV6, int("[" in endpoint)),
            # A question waits for no station that is not there: it would be asked twice.
            (zmq.IMMEDIATE, 1),
        ):
            self.socket.setsockopt(option, value)
        set_keepalive(self.socket)
        #: To be polled for the loss of a connection, see `was_cut_off`.
        self.monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self.monitor.setsockopt(zmq.RCVHWM, 0)
        self.socket.monitor(_MONITOR, zmq.Event.DISCONNECTED)
        self.monitor.connect(_MONITOR)
        try:
            if keys is not None and endpoint.startswith("tcp://"):
                secure_client(self.socket, keys)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            hint = "use the endpoint that edge-run names for requests"
            raise PublishError(f"cannot connect to {endpoint}: {zmq.strerror(error.errno or 0)}", hint) from error
        except BaseException:
            self.close()
            raise

    def send(self, op: str, request: msgspec.Struct) -> int | None:
        """Ask; return the question's number, None while no station is connected."""
        payload = encode_request(op, self._number + 1, request)
        if len(payload) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request of {len(payload)} bytes")
        try:
            self.socket.send_multipart([b"", payload], zmq.NOBLOCK)
        except zmq.Again:
            return None
        self._number += 1
        return self._number

    def receive(self, timeout_s: float) -> Reply | None:
        """Return the next answer; None when none came in time.  What is no answer is skipped."""
        deadline = time.monotonic() + timeout_s
        while self.socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            try:
                return _reply_decoder.decode(self.socket.recv_multipart()[-1])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
        return None

    def call(self, op: str, request: msgspec.Struct, result: type[_Result], timeout_s: float = 2.0) -> _Result:
        """Ask and return the answer.

        Raises:
            RequestError: the station refuses.
            PublishError: no station answered in time.
        """
        deadline = time.monotonic() + timeout_s
        number: int | None = None
        while number is None and self.socket.poll(max(1, int((deadline - time.monotonic()) * 1000)), zmq.POLLOUT):
            number = self.send(op, request)
        while number is not None and (left := deadline - time.monotonic()) > 0:
            reply = self.receive(left)
            if reply is not None and reply.id == number:
                return read_result(reply, result)
        raise PublishError(
            f"no station answered at {self.endpoint} within {timeout_s:g} s",
            "start it, or use the endpoint that edge-run names for requests",
        )

    def was_cut_off(self) -> bool:
        """Whether a connection was lost since the last call: what was asked over it gets no answer."""
        lost = False
        while self.monitor.poll(0):
            recv_monitor_message(self.monitor)
            lost = True
        return lost

    def reconnect(self) -> None:
        """Connect anew: ZeroMQ never comes back from a connection that broke its protocol."""
        self.socket.disconnect(self.endpoint)
        self.socket.connect(self.endpoint)

    def close(self) -> None:
        """Close the connection."""
        self.socket.monitor(None, 0)
        self.monitor.close(0)
        self.socket.close(0)
        self._context.term()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_result(reply: Reply, result: type[_Result]) -> _Result:
    """Return what an answer says.

    Raises:
        RequestError: the station refuses, or says what we cannot read.
    """
    if reply.code:
        raise RequestError(reply.code, reply.error)
    try:
        return msgspec.msgpack.decode(reply.result, type=result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("bad-answer", str(error)) from error
