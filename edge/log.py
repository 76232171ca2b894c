"""Logs for machines and administrators: one line for each record on stderr, as text or as JSON.

    with logging_to_stderr("json"):
        log = logging.getLogger(__name__)
        log.warning("the camera is lost", extra={"camera": "cam0", "attempt": 3})

Lines leave in a thread of their own: a terminal or journal that takes none holds nobody up, and costs lines, which are
counted.  Keeping and rotating them is for journald or logrotate.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import msgspec

from edge.cli import console
from edge.errors import EdgeError

Format = Literal["text", "json"]

#: The logger of what is printed for people, where it becomes records.
CONSOLE_LOGGER = "edge.console"

_MAX_WAITING = 2000
_MAX_LINE = 16 << 10
_CLOSE_S = 2.0
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What is in these must not be known to who reads logs.
_SECRET_NAME = re.compile(r"secret|password|passwd|token|credential", re.IGNORECASE)
_SECRET_FILE = re.compile(r"(redi-edge-secret\s+\S+\s+)\S+")
_USER_INFO = re.compile(r"(://)[^\s/]+@")
_HIDDEN = "***"


def hide_secrets(text: str) -> str:
    """Return the text without users and passwords of addresses, and without the content of secret key files."""
    return _SECRET_FILE.sub(rf"\1{_HIDDEN}", _USER_INFO.sub(rf"\1{_HIDDEN}@", text))


class LineFormatter(logging.Formatter):
    """Formats a record as one line: `TIME LEVEL LOGGER: message key=value`, or as a JSON object.

    Time is UTC.  Whatever is given as `extra` becomes fields; a field whose name speaks of a secret is not shown.
    """

    def __init__(self, kind: Format) -> None:
        super().__init__()
        self._kind = kind

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        moment = f"{seconds}.{int(record.msecs):03d}Z"
        message = hide_secrets(record.getMessage()[:_MAX_LINE])
        fields = {name: _shown(name, value) for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = hide_secrets(self.formatException(record.exc_info))
        if self._kind == "json":
            # Ours last: a field cannot pass for one of them.
            known = {"time": moment, "level": record.levelname, "logger": record.name, "message": message}
            return msgspec.json.encode({**known, **fields, **known}).decode()
        shown = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
        return f"{moment} {record.levelname} {record.name}: {_escaped(message)}{shown}"[:_MAX_LINE]


class BackgroundHandler(logging.Handler):
    """Writes lines in a thread of its own.

    Attributes:
        dropped: lines that were lost because too many waited.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record: formatted at once, written later."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  a record that cannot be told must not stop who tells it
            line = f"a record of {record.name} at {record.pathname}:{record.lineno} cannot be formatted"
        with self._changed:
            if len(self._lines) >= _MAX_WAITING or self._ended:
                self.dropped += 1
                return
            self._lines.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, for a short time at most."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)
        super().close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._ended:
                        return
                    self._changed.wait()
                lines = list(self._lines)
                self._lines.clear()
            try:
                self._stream.write("".join(f"{line}\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):
                # Nobody reads any more.
                self.dropped += len(lines)


class _ConsoleLines:
    """A file for the console: each line that is printed for people becomes a record."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._log = logging.getLogger(CONSOLE_LOGGER)
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._log.info("%s", line.strip())
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@contextmanager
def logging_to_stderr(kind: Format, level: str = "INFO", stream: TextIO | None = None) -> Iterator[BackgroundHandler]:
    """Write records to stderr while the block runs; from libraries, only warnings and worse.

    With `json` each line on stderr is an object: what the console prints for people becomes records of the logger
    `edge.console`, and so does an error that ends the block, before it goes on its way.

    Args:
        kind: text or JSON.
        level: of the product's own loggers.
        stream: instead of stderr.
    """
    root, ours = logging.getLogger(), logging.getLogger("edge")
    handler = BackgroundHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(LineFormatter(kind))
    levels = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(level)
    # Not `console.file`, which answers with what stderr is now, and would stay so when put back.
    file = console._file
    if kind == "json":
        lines: Any = _ConsoleLines()
        console.file = lines
    try:
        yield handler
    except EdgeError as error:
        if kind == "json":
            ours.error("%s", error.problem, extra={"hint": error.hint, "exit_code": error.exit_code})
        raise
    finally:
        if kind == "json":
            console._file = file
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        handler.close()


def _shown(name: str, value: object) -> Any:
    if _SECRET_NAME.search(name) or isinstance(value, (bytes, bytearray, memoryview)):
        return _HIDDEN
    if value is None or isinstance(value, (bool, int, float)):
        # JSON has no NaN; nor does it take numbers of any size everywhere.
        return value
    return hide_secrets(str(value)[:_MAX_LINE])


def _quoted(value: Any) -> str:
    text = _escaped(str(value))
    return f'"{text}"' if not text or " " in text or '"' in text else text


def _escaped(text: str) -> str:
    """Return the text on one line: a message cannot pass for several, nor steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
