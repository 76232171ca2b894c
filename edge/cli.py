"""What every console command shares: one way to end, one way to show an error, one console."""

from __future__ import annotations

import argparse
import errno
import functools
import importlib.util
import io
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edge import __version__
from edge.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EdgeError, UsageError

Main = Callable[[Sequence[str] | None], int]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Console(Console):
    """Shows names as they are (`:x:` is no emoji); stdout that cannot be written is left to `command`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print; on stderr, go quiet where that fails: a lost log must not stop the line."""
        try:
            super().print(*objects, **settings)
        except OSError:
            if not self.stderr:
                raise
            self.quiet = True

    def on_broken_pipe(self) -> None:
        """Go on with the BrokenPipeError that is being handled."""
        raise


#: Progress, notes and errors go to stderr, so that stdout stays clean for results and JSON lines.
console: Console = _Console(stderr=True, soft_wrap=True)


def output_console(*, soft_wrap: bool = True, markup: bool = True) -> Console:
    """Return a console for results, on stdout."""
    return _Console(soft_wrap=soft_wrap, markup=markup)


class CommandParser(argparse.ArgumentParser):
    """The arguments of a console command, `--version` among them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Those of its actions are made by the same class, and are called "edge-x action".
        if " " not in self.prog:
            self.add_argument("--version", action="version", version=f"redi-edge {__version__}")


def command(main: Main) -> Main:
    """Wrap a `main(argv) -> exit code`: an `EdgeError` becomes one line and its exit code, never a traceback."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        _accept_any_text()
        try:
            code = main(argv)
            if sys.stdout is not None:
                # What is still buffered may fail to leave: here that can be said, at the interpreter's end no more.
                sys.stdout.flush()
            return code
        except EdgeError as error:
            show_error(error)
            return error.exit_code
        except KeyboardInterrupt:
            console.print("interrupted", style="yellow")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of our stdout went away (`| head`): it has seen enough.
            return 0
        except Exception as error:  # noqa: BLE001  the last line of defence: a bug, reported as one
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                show_error(EdgeError(f"cannot write {error.filename or 'the output'}: {error.strerror}", "free space"))
                return EdgeError.exit_code
            _report_bug(error)
            return EXIT_INTERNAL
        finally:
            _give_up_broken_streams()

    return wrapped


def show_error(error: EdgeError) -> None:
    """Print the problem and the next step on stderr."""
    console.print(f"[bold red]error[/]: {escape(error.problem)}")
    if error.hint:
        console.print(f"  [bold]next[/]: {escape(error.hint)}")


class _Note(ProgressColumn):
    """What a task says of itself in its field `note`, if it says anything."""

    def render(self, task: Task) -> Text:
        """Return the note, or nothing."""
        return Text(str(task.fields.get("note", "")))


def progress(transient: bool = False) -> Progress:
    """Return a progress bar with count, elapsed time and ETA, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        _Note(),
        console=console,
        transient=transient,
        # Where nobody watches, a bar that vanishes would leave an empty line.
        disable=transient and not console.is_terminal,
    )


def require_extra(extra: str, *modules: str) -> None:
    """Refuse to go on where modules of an optional extra are not installed, saying how to get them.

    Raises:
        UsageError: at least one is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"this command needs {', '.join(missing)}, which a station installs without",
            f"pip install 'redi-edge[{extra}]'",
        )


def whole_number(text: str) -> int:
    """Return the whole number from 1 that an argument is; for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def positive_number(text: str) -> float:
    """Return the finite number above 0 that an argument is; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _accept_any_text() -> None:
    """Let names that the output's encoding cannot carry come out escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_broken_streams() -> None:
    """Point standard streams that cannot be written any more at nothing, so that closing them stays quiet."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report_bug(error: Exception) -> None:
    console.print(f"[bold red]internal error[/]: {type(error).__name__}: {escape(str(error))}")
    details = f"redi-edge {__version__}\n{sys.argv}\n{traceback.format_exc()}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="redi-error-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(details)
    except OSError as failure:
        console.print(f"  this is a bug; its details cannot be saved: {escape(str(failure))}")
    else:
        console.print(f"  this is a bug; the details are in {escape(file.name)}")
