"""What every console command shares: one way to end, one way to show an error, one console."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edge import __version__
from edge.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EdgeError

#: Progress, notes and errors go to stderr, so that stdout stays clean for results and JSON lines.
console = Console(stderr=True, highlight=False, soft_wrap=True)

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """Wrap a `main(argv) -> exit code`: an `EdgeError` becomes one line and its exit code, never a traceback."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except EdgeError as error:
            show_error(error)
            return error.exit_code
        except KeyboardInterrupt:
            console.print("interrupted", style="yellow")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of our stdout went away (`| head`): point stdout elsewhere so that closing it stays quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:  # noqa: BLE001  the last line of defence: a bug, reported as one
            with tempfile.NamedTemporaryFile("w", prefix="redi-error-", suffix=".txt", delete=False) as file:
                file.write(f"redi-edge {__version__}\n{sys.argv}\n{traceback.format_exc()}")
            console.print(f"[bold red]internal error[/]: {type(error).__name__}: {escape(str(error))}")
            console.print(f"  this is a bug; the details are in {file.name}")
            return EXIT_INTERNAL

    return wrapped


def show_error(error: EdgeError) -> None:
    """Print the problem and the next step on stderr."""
    console.print(f"[bold red]error[/]: {escape(error.problem)}")
    if error.hint:
        console.print(f"  [bold]next[/]: {escape(error.hint)}")


def progress(transient: bool = False) -> Progress:
    """Return a progress bar with count, elapsed time and ETA, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
    )
