"""Health and metrics over HTTP: `/health` as JSON for probes and people, `/metrics` for Prometheus.

One thread answers, without ever waiting for a client: a slow or hostile one loses its connection, and holds up neither
the station nor other clients.  There is nothing to send to it but a path, and nothing can be changed through it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from edge.errors import PublishError
from edge.events.security import is_loopback
from edge.supervision.metrics import CONTENT_TYPE, MetricsPage
from edge.supervision.report import Health, StationReport

_log = logging.getLogger(__name__)

_EXAMPLE = "an address is ADDRESS:PORT, such as 127.0.0.1:9560"
# A request has one line that matters; browsers add some more.
_MAX_REQUEST_BYTES = 8192
_MAX_CONNECTIONS = 32
_TIMEOUT_S = 5.0
# However often somebody asks, the station is asked no more often.
_FRESH_S = 0.25
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

_Answer = tuple[int, str, bytes]


class HealthServer:
    """Answers for a station, from the moment that it is made.

    Args:
        address: `ADDRESS:PORT`, port 0 for a free one; `[ADDRESS]:PORT` for IPv6.
        report: returns the station's report; called in the server's thread.
        insecure: listen beyond loopback, where anybody may read.
        timeout_s: so long may a client take for its request, and again for its answer.

    Attributes:
        address: where it listens.

    Raises:
        PublishError: the address is invalid or in use, or open to other machines.
    """

    def __init__(
        self,
        address: str,
        report: Callable[[], StationReport],
        *,
        insecure: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        host, port = parse_address(address)
        if not (insecure or is_loopback(f"tcp://{address}")):
            raise PublishError(
                f"--health {address} can be reached from other machines, where anybody may read it",
                "use 127.0.0.1 and let a proxy on this machine ask for passwords; --insecure does without",
            )
        self._report = report
        self._metrics = MetricsPage(lambda: self._latest)
        self._latest = StationReport()
        self._answers: dict[str, tuple[float, _Answer]] = {}
        self._timeout_s = timeout_s
        self._listening = _listen(address, host, port)
        bound = self._listening.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        self._connections: dict[asyncio.Task[None], None] = {}
        self._ended = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more; cut off who waits."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    def __enter__(self) -> HealthServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the server's thread

    def _run(self) -> None:
        # Silent about what broken clients do.
        self._loop.set_exception_handler(lambda _, context: _log.debug("%s", context.get("message")))
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listening, limit=_MAX_REQUEST_BYTES)
        await self._ended.wait()
        server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            # The one that has taken longest makes room: it is the likeliest to be up to no good.
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._serve(reader, writer))
        self._connections[task] = None
        task.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            status, kind, body, head_only = await self._answer(reader)
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + (b"" if head_only else body))
            await asyncio.wait_for(writer.drain(), self._timeout_s)
            if writer.can_write_eof():
                writer.write_eof()
            # Until the client has closed its side: to close ours over unread bytes would take back the answer.
            await asyncio.wait_for(_read_all(reader), self._timeout_s)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            # A client that is gone, or takes too long.
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, str, bytes, bool]:
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self._timeout_s)
        except asyncio.LimitOverrunError:
            return 431, _TEXT, b"the request is too long\n", False
        except asyncio.TimeoutError:
            return 408, _TEXT, b"the request did not come in time\n", False
        words = request.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, _TEXT, b"not an HTTP/1 request\n", False
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"GET or HEAD\n", False
        return (*self._page(target.partition("?")[0]), method == "HEAD")

    def _page(self, path: str) -> _Answer:
        make = {"/health": self._health, "/metrics": self._render_metrics}.get(path)
        if make is None:
            return 404, _TEXT, b"/health or /metrics\n"
        made_at, answer = self._answers.get(path, (-1.0, (500, _TEXT, b"")))
        now = time.monotonic()
        if made_at < 0 or now - made_at > _FRESH_S:
            try:
                self._latest = self._report()
                answer = make()
            except Exception:  # noqa: BLE001  what one part of the station cannot tell must not end the answers
                _log.exception("%s cannot be answered", path)
                answer = (500, _TEXT, b"the station's report failed; see its log\n")
            self._answers[path] = (now, answer)
        return answer

    def _health(self) -> _Answer:
        report = self._latest
        body = {
            "status": report.health.value,
            "reasons": report.reasons,
            "warnings": report.warnings,
            "cameras": {
                camera.name: {
                    "state": camera.state,
                    "reasons": camera.reasons,
                    "frames": camera.frames,
                    "journal": "none" if camera.journal is None else camera.journal.state,
                    "bundle_id": camera.bundle_id,
                    "calibration_id": camera.calibration_id,
                }
                for camera in report.cameras
            },
            "archive": "none" if report.archive is None else report.archive.state,
        }
        return 503 if report.health is Health.FAILING else 200, _JSON, msgspec.json.encode(body) + b"\n"

    def _render_metrics(self) -> _Answer:
        return 200, CONTENT_TYPE, self._metrics.render()


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `ADDRESS:PORT`.

    Raises:
        PublishError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and address.isprintable() and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise PublishError(f"{address!r} is not an address with a port", _EXAMPLE)
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _read_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(_MAX_REQUEST_BYTES):
        pass


def _listen(address: str, host: str, port: int) -> socket.socket:
    listening: socket.socket | None = None
    try:
        family, *_, bound = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(bound)
        listening.listen(_MAX_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise PublishError(f"--health cannot listen at {address}: {reason}", _EXAMPLE) from error
    return listening
