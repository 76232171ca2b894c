"""One training of a sweep, in processes of its own, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import EXIT_INTERRUPTED, TrainingError
from edge.files import atomic_write, utf8_text
from train.sweep import Job

#: Seconds that a run gets to write its checkpoint when the sweep is stopped.
STOP_SECONDS = 60.0


class Outcome(msgspec.Struct, frozen=True):
    """How one run ended: `done`, `failed`, `interrupted`, or `waiting`: not begun.

    `error` is the run's own last error line; `metrics` are those of train-eval.
    """

    product: str
    seed: int
    folder: str
    state: str
    arguments: list[str]
    exit_code: int | None = None
    seconds: float = 0.0
    error: str = ""
    metrics: dict[str, float | None] | None = None

    @classmethod
    def of(cls, job: Job, state: str, error: str = "", **measured: Any) -> Outcome:
        """Return the outcome of this job."""
        return cls(job.product, job.seed, str(job.folder), state, list(job.train), error=error, **measured)


def finished(job: Job) -> Outcome | None:
    """Return how this very job ended where it is done, else None."""
    try:
        outcome = msgspec.json.decode(job.record.read_bytes(), type=Outcome)
    except (OSError, msgspec.MsgspecError):
        return None
    same = outcome.arguments == list(job.train) and outcome.state == "done" and (job.folder / "model.pt").is_file()
    return outcome if same and (job.evaluate is None or outcome.metrics is not None) else None


def execute(job: Job) -> Outcome:
    """Train and evaluate one job in processes of their own, and record how it ended.

    On KeyboardInterrupt, the run writes its checkpoint first; then it is recorded as interrupted.
    """
    begin = time.monotonic()
    code, error = 0, ""
    metrics: dict[str, float | None] | None = None
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            start = log.tell()
            code = _child("train.commands.run", job.train, job, log.fileno())[0]
            if code == 0 and job.evaluate is not None:
                code, text = _child("train.commands.evaluate", job.evaluate, job, log.fileno(), subprocess.PIPE)
                if code == 0:
                    metrics = _metrics(text)
        error = _last_error(job.log, start) if code else ""
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as failure:
        code, error = TrainingError.exit_code, f"{failure.filename or job.folder}: {failure.strerror}"
    state = {0: "done", EXIT_INTERRUPTED: "interrupted"}.get(code, "failed")
    seconds = round(time.monotonic() - begin, 1)
    outcome = Outcome.of(job, state, error, exit_code=code, seconds=seconds, metrics=metrics)
    with contextlib.suppress(OSError), atomic_write(job.record) as file:
        file.write(msgspec.json.format(msgspec.json.encode(outcome), indent=2))
    return outcome


def _child(module: str, arguments: Sequence[str], job: Job, log: int, stdout: int | None = None) -> tuple[int, bytes]:
    """Run a command to its end; return its exit code, and what it printed where `stdout` is a pipe."""
    # What starts a run may ignore Ctrl-C (a shell's background) or hold it back (Ray): the run must not, as that is how
    # it is stopped.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]); "
        f"from {module} import main; sys.exit(main())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log if stdout is None else stdout,
        stderr=log,
        cwd=job.directory,
        env=environment,
        # Ctrl-C in a terminal goes to the sweep alone, which passes it on once.
        start_new_session=True,
    )
    try:
        while True:
            # In turns: a cancelled task of Ray is told between two instructions of Python, not within a wait.
            with contextlib.suppress(subprocess.TimeoutExpired):
                text, _ = process.communicate(timeout=1.0)
                return process.returncode, text or b""
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise


def _metrics(text: bytes) -> dict[str, float | None]:
    values = msgspec.json.decode(text.strip().splitlines()[-1], type=dict[str, Any])["metrics"]
    return {name: value for name, value in values.items() if value is None or isinstance(value, float)}


def _last_error(log: Path, start: int) -> str:
    """Return the last error that was printed into the log after `start`, else its last line."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error:", "internal error:")) or ": error: " in line]
    return utf8_text((told or lines or ["ended without a word"])[-1].removeprefix("error: "))
