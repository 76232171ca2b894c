"""Who may connect: ZeroMQ's CURVE on TCP, with a door that opens to allowed public keys alone.

Everything on the wire is then encrypted and authenticated, both ways (https://rfc.zeromq.org/spec/26/).  An ipc
socket needs none of it: its mode, 0600, says who may connect.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from edge.errors import KeysError, PublishError
from edge.keys import KEY_BYTES, KeyFolder, KeyPair, Kind, PublicKey

_ZAP = "inproc://zeromq.zap.01"  # https://rfc.zeromq.org/spec/27/
_ARRIVALS = "inproc://gatekeeper"
_DOMAIN = b"redi-edge"
# So long may a handshake take; whoever connects and stays silent is cut off.
_HANDSHAKE_MS = 5000
# What CURVE adds to a message; the limits on sizes are of our own bytes.
_OVERHEAD_BYTES = 64
_FAILURES = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
# libzmq's ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, which pyzmq gives no stable name.
_MECHANISM_MISMATCH = 0x11000002


@dataclass(frozen=True)
class ServerKeys:
    """A station's own pair, and the folder that says whom it admits.

    Raises:
        KeysError: the pair is not one for connecting.
    """

    pair: KeyPair
    folder: KeyFolder

    def __post_init__(self) -> None:
        _check_kind(self.pair.public)


@dataclass(frozen=True)
class ClientKeys:
    """A client's own pair, and the public key that its station must prove to have.

    Raises:
        KeysError: one of them is not for connecting.
    """

    pair: KeyPair
    server: PublicKey

    def __post_init__(self) -> None:
        _check_kind(self.pair.public)
        _check_kind(self.server)


def _check_kind(key: PublicKey) -> None:
    if key.kind is not Kind.CONNECT:
        raise KeysError(f"{key.name} is a key for signing, not for connecting", "edge-keys make NAME makes one")


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach the endpoint.  What is not surely loopback is not."""
    if endpoint.startswith("ipc://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host in ("localhost", "lo") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(endpoint: str, *, secured: bool, insecure: bool) -> None:
    """Refuse to listen beyond this machine where anybody could connect.

    Raises:
        PublishError: the endpoint is not loopback, has no keys, and `insecure` does not ask for that.
    """
    if not (secured or insecure or is_loopback(endpoint)):
        raise PublishError(
            f"{endpoint} can be reached from other machines, and without keys anybody there may listen",
            "make keys (edge-keys make station) and give --keys DIR; --insecure does without",
        )


class Gatekeeper:
    """Admits clients to the secured sockets of one ZeroMQ context; made by `secure_server`.

    Its thread asks the key folder anew at every handshake and lives until the context is terminated: ZeroMQ would
    let everybody in while nobody answers its questions.

    Attributes:
        refused: attempts to connect that failed; a client that tries again counts again.
        last_refusal: why the last of them did.
        report: called with `last_refusal` at each, in the gatekeeper's thread, where it is set.
    """

    def __init__(self, context: zmq.Context[Any], keys: ServerKeys) -> None:
        self.refused = 0
        self.last_refusal = ""
        self.report: Callable[[str], None] | None = None
        self.keys = keys
        self._context = context
        self._monitors: list[zmq.Socket[bytes]] = []
        # Bound before any socket can be secured.
        self._zap: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(_ZAP)
        self._arrivals: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self._arrivals.linger = 0
        self._arrivals.bind(_ARRIVALS)
        threading.Thread(target=self._run, name="gatekeeper", daemon=True).start()

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Make the socket, not bound yet, a CURVE server."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        _allow_overhead(socket)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        # Unbounded: a full monitor would stop ZeroMQ's own thread.
        monitor.setsockopt(zmq.RCVHWM, 0)
        monitor.linger = 0
        address = f"inproc://gatekeeper-{id(monitor)}"
        socket.monitor(address, _FAILURES | zmq.Event.MONITOR_STOPPED)
        monitor.connect(address)
        self._monitors.append(monitor)
        with self._context.socket(zmq.PUSH) as arrival:
            arrival.connect(_ARRIVALS)
            arrival.send(b"%d" % (len(self._monitors) - 1))

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._arrivals, zmq.POLLIN)
        try:
            while True:
                for socket, _ in poller.poll():
                    if socket is self._zap:
                        self._zap.send_multipart(self._answer(self._zap.recv_multipart()))
                    elif socket is self._arrivals:
                        poller.register(self._monitors[int(self._arrivals.recv())], zmq.POLLIN)
                    elif self._follow(socket):
                        poller.unregister(socket)
                        socket.close()
        except zmq.ContextTerminated:
            # For nothing else: unanswered questions keep the door shut, a closed socket would leave it open.
            for each in (*self._monitors, self._arrivals, self._zap):
                each.close()
        finally:
            with _lock:
                _gatekeepers.pop(self._context, None)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        identity = request[1] if len(request) > 1 else b""
        try:
            refusal = self._judge(request)
        except Exception as error:  # noqa: BLE001  whatever goes wrong here, the door stays shut
            refusal = f"the keys cannot be read: {error}"
        if refusal:
            self._refuse(refusal)
            return [b"1.0", identity, b"400", b"not allowed", b"", b""]
        return [b"1.0", identity, b"200", b"OK", b"", b""]

    def _judge(self, request: list[bytes]) -> str:
        """Return why the client is refused, "" where it is not."""
        if len(request) != 7 or request[5] != b"CURVE" or len(request[6]) != KEY_BYTES:
            return "a client without a key"
        key = PublicKey(Kind.CONNECT, request[6], "")
        allowed, problems = self.keys.folder.scan_allowed(Kind.CONNECT)
        if key in allowed:
            return ""
        address = request[3].decode("ascii", "replace")
        reason = f"{address}: the key {key.text} is not allowed here"
        return reason + "".join(f"; {error}" for error in problems)

    def _follow(self, monitor: zmq.Socket[bytes]) -> bool:
        """Take a monitor's event; True where its socket is gone."""
        event = recv_monitor_message(monitor)
        if event["event"] == zmq.Event.MONITOR_STOPPED:
            return True
        if event["event"] == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            mismatch = event["value"] == _MECHANISM_MISMATCH
            self._refuse("a client without keys" if mismatch else "a client that has another station's key, or is none")
        else:
            self._refuse("a client that broke off, perhaps for want of keys")
        return False

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self.last_refusal = reason
        if self.report is not None:
            self.report(reason)


_lock = threading.Lock()
_gatekeepers: dict[zmq.Context[Any], Gatekeeper] = {}


def secure_server(socket: zmq.Socket[bytes], keys: ServerKeys) -> Gatekeeper:
    """Make a socket, not bound yet, admit allowed clients alone; return its context's gatekeeper.

    Raises:
        KeysError: the folder of allowed keys cannot be used, or a file in it is bad.
        ValueError: another socket of the context was secured with other keys.
    """
    # Said now rather than at the first client.
    keys.folder.allowed(Kind.CONNECT)
    context = socket.context
    with _lock:
        gatekeeper = _gatekeepers.get(context)
        if gatekeeper is None:
            gatekeeper = _gatekeepers[context] = Gatekeeper(context, keys)
    if gatekeeper.keys != keys:
        raise ValueError("one ZeroMQ context has one set of keys")
    gatekeeper.secure(socket)
    return gatekeeper


def secure_client(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    """Make a socket, not connected yet, talk to the station of that key alone, under the client's own key."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server.raw)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public.raw)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
    _allow_overhead(socket)


def _allow_overhead(socket: zmq.Socket[bytes]) -> None:
    limit = socket.getsockopt(zmq.MAXMSGSIZE)
    if isinstance(limit, int) and limit > 0:
        socket.setsockopt(zmq.MAXMSGSIZE, limit + _OVERHEAD_BYTES)


class HandshakeJudge:
    """Finds out from a client's monitor events why it is not let in.

    Attributes:
        refusal: the likely cause, for people; "" while there is none.
    """

    #: The events that it wants to see.
    EVENTS = _FAILURES | zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_SUCCEEDED

    def __init__(self, keys: ClientKeys | None) -> None:
        self.refusal = ""
        self._keys = keys
        self._broken_off = 0

    def see(self, event: int, value: int) -> None:
        """Take note of an event and its value."""
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.refusal = ""
            self._broken_off = 0
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH and self._keys is not None:
            self.refusal = (
                "the station does not allow this client's key; there, run: "
                f"edge-keys allow {self._keys.pair.public.text} --name {self._keys.pair.public.name}"
            )
        elif event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM_MISMATCH:
            self.refusal = self._mismatch()
        elif event in (zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, zmq.Event.HANDSHAKE_FAILED_PROTOCOL):
            # A station that just stops does this too, but not twice in a row.
            self._broken_off += 1
            if self._broken_off > 1 and not self.refusal:
                self.refusal = self._unknown()

    def _mismatch(self) -> str:
        if self._keys is None:
            return "the station admits only clients with keys: give its public key and our own (--server-key, --keys)"
        return "the station uses no keys: start it with --keys, or leave out ours"

    def _unknown(self) -> str:
        if self._keys is None:
            return "whoever is there breaks off: a station that wants keys (--server-key, --keys), or no station"
        return (
            f"whoever is there breaks off: {self._keys.server.text} is not this station's key (edge-keys show there "
            "prints it), the station uses no keys, or it is no station"
        )
