"""A network that can be cut: connections go through here."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


def to_tcp(port: int) -> Connect:
    return lambda: asyncio.open_connection("127.0.0.1", port)


def to_unix(path: str) -> Connect:
    return lambda: asyncio.open_unix_connection(path)


class Proxy:
    """Forwards TCP connections to `target`.

    `cut` breaks all of them and admits no new ones; `hold` keeps what is under way, and `heal` delivers it, late.
    """

    def __init__(self, target: Connect) -> None:
        self._target = target
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._ended = asyncio.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._do(self._break)

    def hold(self) -> None:
        self._do(self._flowing.clear)

    def heal(self) -> None:
        self._do(self._mend)

    def _do(self, what: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(what)

    def _break(self) -> None:
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._cut = False
        self._flowing.set()

    async def _run(self) -> None:
        self._flowing.set()
        server = await asyncio.start_server(self._serve, sock=self._listening)
        await self._ended.wait()
        server.close()
        self._break()
        self._flowing.set()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # For those that connected meanwhile; a transport that is aborted closes in the loop's next round.
        self._break()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError):
            if not self._cut:
                there, back = await self._target()
                self._writers.add(back)
                await asyncio.wait(
                    [asyncio.ensure_future(self._pump(reader, back)), asyncio.ensure_future(self._pump(there, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                back.transport.abort()
                self._writers.discard(back)
        writer.transport.abort()
        self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._ended.set)
        self._thread.join()
        self._loop.close()
