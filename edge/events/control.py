"""The station's second socket: it answers requests, in a thread of its own, one after the other.

A ROUTER, so that a client may use a REQ or a DEALER socket.  Whatever comes in is bounded; a client that reads none of
its answers loses them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from edge.events import requests
from edge.events.bind import serve
from edge.events.endpoint import check_endpoint, endpoint_beside
from edge.events.requests import MAX_REQUEST_BYTES, Reply, Request, RequestError, encode
from edge.events.security import ServerKeys, check_exposure
from edge.supervision.pulse import Pulse, resting

# Answers that may wait for a client that does not read them.
_WAITING_ANSWERS = 2
# Questions that may wait of a client that does not wait for its answers.
_WAITING_QUESTIONS = 100
_MAX_FRAMES = 4
# Threads for requests that take long, so that a replay goes on while a bundle loads.
_WORKERS = 2
_END, _ANSWER = b"end", b"answer"

_Request = TypeVar("_Request", bound=msgspec.Struct)


class _Operation(Generic[_Request]):
    def __init__(self, request: type[_Request], handle: Callable[[_Request], msgspec.Struct], slow: bool) -> None:
        self.slow = slow
        self._decoder = msgspec.msgpack.Decoder(request)
        self._handle = handle

    def __call__(self, payload: bytes) -> msgspec.Struct:
        try:
            request = self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(requests.BAD_REQUEST, str(error)) from error
        return self._handle(request)


class Control:
    """Answers requests by the handlers that are registered.

    Args:
        endpoint: `tcp://ADDRESS:PORT` or `ipc://PATH`, see `control_endpoint`.
        context: the station's, so that one gatekeeper serves all its sockets; its own when None.
        keys: on TCP, admit only clients that these allow.
        insecure: without keys, listen beyond loopback all the same.
        pulse: its thread's sign of life.

    Attributes:
        served: requests that were answered.
        rejected: messages that were none, and requests that were refused.

    Raises:
        PublishError: the endpoint is invalid or in use, or open to other machines without keys.
        KeysError: the keys cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        context: zmq.Context[Any] | None = None,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        pulse: Pulse | None = None,
    ) -> None:
        check_endpoint(endpoint)
        check_exposure(endpoint, secured=keys is not None, insecure=insecure)
        self.served = 0
        self.rejected = 0
        self._pulse = pulse
        if pulse is not None:
            # Until `start`, which may have to wait for a model to load.
            pulse.idle()
        self._operations: dict[str, _Operation[Any]] = {}
        self._envelope = msgspec.msgpack.Decoder(Request)
        self._own_context: zmq.Context[Any] | None = None
        if context is None:
            context = self._own_context = zmq.Context()
        self._thread: threading.Thread | None = None
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_REQUEST_BYTES),
            (zmq.SNDHWM, _WAITING_ANSWERS),
            (zmq.RCVHWM, _WAITING_QUESTIONS),
            # An answer that cannot be sent is an error, which we count, rather than nothing.
            (zmq.ROUTER_MANDATORY, 1),
        ):
            self._socket.setsockopt(option, value)
        inner = f"inproc://control-{id(self)}"
        self._woken: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._waker: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._waking = threading.Lock()
        # Answers to slow requests: the sockets to whom, and what.
        self._answers: queue.SimpleQueue[tuple[Sequence[bytes], Reply]] = queue.SimpleQueue()
        self._workers = ThreadPoolExecutor(_WORKERS, "control-slow")
        self._slow_waiting = 0
        self._path = None
        try:
            self._woken.bind(inner)
            self._waker.connect(inner)
            self._path, _ = serve(self._socket, endpoint, keys)
        except BaseException:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def register(
        self, op: str, request: type[_Request], handle: Callable[[_Request], msgspec.Struct], *, slow: bool = False
    ) -> None:
        """Answer an operation: `handle` returns the result or raises `RequestError`.

        Args:
            op: the operation's name.
            request: its fields, besides `op` and `id`; fields that it does not know are ignored.
            handle: called in this thread alone, and all other requests wait; if `slow`, in another one, and only
                other slow requests wait.
            slow: whether it may take long.
        """
        self._operations[op] = _Operation(request, handle, slow)

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop and close."""
        if self._thread is not None:
            with self._waking:
                self._waker.send(_END)
            self._thread.join()
            self._thread = None
        self._workers.shutdown(cancel_futures=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        for each in (self._socket, self._waker, self._woken):
            each.close(linger=0)
        if self._own_context is not None:
            self._own_context.term()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while True:
            with resting(self._pulse):
                ready = dict(poller.poll())
            if self._woken in ready:
                if self._woken.recv() == _END:
                    return
                self._slow_waiting -= 1
                self._reply(*self._answers.get())
            if self._socket in ready:
                self._serve(self._socket.recv_multipart())

    def _serve(self, frames: Sequence[bytes]) -> None:
        # Identity, what a REQ socket puts between, request.
        if not 2 <= len(frames) <= _MAX_FRAMES or len(frames[-1]) > MAX_REQUEST_BYTES:
            self.rejected += 1
            return
        to, payload = frames[:-1], frames[-1]
        try:
            request = self._envelope.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._reply(to, Reply(0, requests.BAD_REQUEST, str(error)))
            return
        operation = self._operations.get(request.op)
        if operation is None:
            problem = f"this station does not know {request.op!r}"
            self._reply(to, Reply(request.id, requests.UNKNOWN_OPERATION, problem))
        elif not operation.slow:
            self._reply(to, _answer(operation, request.id, payload))
        elif self._slow_waiting >= _WAITING_QUESTIONS:
            self._reply(to, Reply(request.id, requests.BUSY, "too many requests wait"))
        else:
            self._slow_waiting += 1
            self._workers.submit(self._answer_slowly, to, operation, request.id, payload)

    def _answer_slowly(self, to: Sequence[bytes], operation: _Operation[Any], number: int, payload: bytes) -> None:
        self._answers.put((to, _answer(operation, number, payload)))
        with self._waking:
            self._waker.send(_ANSWER)

    def _reply(self, to: Sequence[bytes], reply: Reply) -> None:
        if reply.code:
            self.rejected += 1
        else:
            self.served += 1
        try:
            self._socket.send_multipart([*to, encode(reply)], zmq.NOBLOCK)
        except zmq.ZMQError:
            # The client has gone, or reads no answers.
            self.rejected += 1


def _answer(operation: _Operation[Any], number: int, payload: bytes) -> Reply:
    try:
        return Reply(number, result=msgspec.Raw(encode(operation(payload))))
    except RequestError as error:
        return Reply(number, error.code, error.problem)
    except Exception as error:  # noqa: BLE001  one request's trouble must not end the answering of others
        return Reply(number, requests.INTERNAL, f"{type(error).__name__}: {error}")


def control_endpoint(events: str) -> str:
    """Return where the station of an event endpoint answers requests: the next port, or `PATH.control`.

    A free port for events (`*` or 0) means a free one here.

    Raises:
        PublishError: the endpoint is invalid, or there is no next port.
    """
    return endpoint_beside(events, 1, "control", "no next port for requests")
