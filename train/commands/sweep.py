"""`train-sweep`: many products and seeds, each in a run folder of its own, beside each other on Ray."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from edge.cli import CommandParser, command, console, output_console, positive_number, require_extra, whole_number
from edge.errors import TrainingError, UsageError
from train.commands import NEEDED, run

if TYPE_CHECKING:
    from train.sweep import Job, Product
    from train.sweepjob import Outcome
    from train.sweeppool import Pool

EPILOG = """\
examples:
  train-sweep mvtec --out runs/mvtec --seeds 0,1,2 --minutes 10       (all of its products, one run at a time)
  train-sweep photos/cap photos/seal --out runs --jobs 4 --threads 2  (beside each other, on Ray)
  train-sweep plant.toml --out runs --cluster 10.0.0.5:6379           (a sweep file: docs/scale.md)

Every run is a folder DIR/PRODUCT/seedN that all commands take. Runs that are finished are skipped and those that were
interrupted resume: after Ctrl-C, a crash or a mended product, give the same command again. A run that fails stops no
other one.

exit codes: 0 all runs are finished; 2 usage; 7 the sweep file cannot be used; 10 at least one run failed;
130 interrupted (resume with the same command)
"""

#: Options of train-run that a sweep sets itself.
_OWN = ("help", "version", "out", "seed", "threads", "restart")


def parser() -> argparse.ArgumentParser:
    """Describe the arguments: the sweep's own, then those of train-run that hold for every run."""
    p = CommandParser(
        prog="train-sweep", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "data", nargs="+", metavar="DATA", help="folders of products, data sets with several, or one sweep file (.toml)"
    )
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the run folders and the summary go")
    p.add_argument("--seeds", type=seeds, metavar="N,N,…", help="one run each (0, or what the sweep file says)")
    p.add_argument(
        "--jobs", type=whole_number, metavar="N", help="runs at a time (1; on a cluster, what its CPUs hold)"
    )
    p.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster that sees the same folders (this machine)")
    p.add_argument("--threads", type=whole_number, metavar="T", help="CPU threads of a run (all cores by --jobs)")
    p.add_argument(
        "--gpus", type=_share, metavar="G", help="GPUs of a run on Ray, 0.5 shares one (one, where there are any)"
    )
    group = p.add_argument_group("options of every run (train-run --help)")
    for action in _train_options():
        group._add_action(action)
    return p


def _train_options() -> list[argparse.Action]:
    # argparse offers its actions in no other way.
    return [a for a in run.parser()._actions if a.option_strings and a.dest not in _OWN]


def seeds(text: str) -> list[int]:
    """Return the seeds that an argument lists; for argparse."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different seeds, such as 0,1,2")
    return [int(part) for part in parts]


def _share(text: str) -> float:
    return 0.0 if text == "0" else positive_number(text)


def _options(args: argparse.Namespace) -> list[str]:
    """Return the arguments of train-run that were given."""
    found = []
    for action in _train_options():
        value = getattr(args, action.dest)
        if value != action.default:
            found.append(action.option_strings[0] if value is True else f"{action.option_strings[0]}={value}")
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    on_ray = args.cluster is not None or (args.jobs or 1) > 1
    if on_ray and importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--jobs above 1 and --cluster need Ray, which is not installed",
            "pip install 'redi-edge[sweep]', or --jobs 1 without --cluster: one run after the other",
        )
    require_extra("train", *NEEDED)

    from train.sweep import plan
    from train.sweeppool import Here, RayPool
    from train.sweepsummary import write_summary

    products, wanted = _products(args.data)
    threads = args.threads or (1 if args.cluster else max(1, (os.cpu_count() or 1) // (args.jobs or 1)))
    jobs = plan(products, args.seeds or wanted or [0], args.out, _options(args), threads)
    for job in jobs:
        # Said here by argparse, once, and not by every run.
        run.parser().parse_args(list(job.train))
    board = Board(jobs)
    write_summary(args.out, board.outcomes)
    try:
        with ExitStack() as stack:
            pool: Pool = Here()
            if on_ray and board.waiting:
                pool = stack.enter_context(RayPool(args.cluster, args.jobs, threads, args.gpus))
            stack.enter_context(_terminable())
            stack.enter_context(board.shown())
            _run(board, pool)
    finally:
        summary = write_summary(args.out, board.outcomes)
    _print_table(summary)
    console.print(f"summary: {args.out / 'summary.md'}", markup=False)
    failed = [f"{o.product} (seed {o.seed})" for o in board.outcomes if o.state == "failed"]
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise TrainingError(
            f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed[:3])}{more}",
            f"{args.out / 'summary.md'} says why; mend that and give the same command again",
        )
    return 0


def _products(data: Sequence[str]) -> tuple[list[Product], list[int] | None]:
    from train.sweep import expand, read_spec

    if len(data) == 1 and data[0].endswith(".toml"):
        return read_spec(Path(data[0]))
    return [product for folder in data for product in expand(Path(folder))], None


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM stop the sweep as Ctrl-C does: its runs would go on without it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(board: Board, pool: Pool) -> None:
    """Run what waits, `pool.width` at a time.

    Raises:
        KeyboardInterrupt: the sweep, or one of its runs, was interrupted.
    """
    try:
        while board.waiting or board.running:
            while board.waiting and len(board.running) < pool.width:
                pool.start(board.begin())
            outcome = pool.wait()
            board.end(outcome)
            if outcome.state == "interrupted":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        console.print("stopping: every run writes its checkpoint")
        for outcome in pool.stop():
            board.end(outcome)
        raise


class Board:
    """What is done, what runs and what waits, shown while it changes."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        from train.sweepjob import Outcome, finished

        self.jobs = list(jobs)
        self.running: dict[tuple[str, int], float] = {}
        self._ended = {(job.product, job.seed): done for job in jobs if (done := finished(job)) is not None}
        self._unknown = {(job.product, job.seed): Outcome.of(job, "waiting") for job in jobs}
        self.waiting = deque(job for job in jobs if (job.product, job.seed) not in self._ended)
        if self._ended:
            console.print(f"{len(self._ended)} of {len(jobs)} runs are finished already")

    @property
    def outcomes(self) -> list[Outcome]:
        """How every job ended, or that it waits, in the order of the jobs."""
        return [self._ended.get(key, waiting) for key, waiting in self._unknown.items()]

    def begin(self) -> Job:
        """Return the next job that waits; it runs from now on."""
        job = self.waiting.popleft()
        self.running[job.product, job.seed] = time.monotonic()
        if not console.is_terminal:
            console.print(f"{job.product} seed {job.seed}: begins, {job.log}", markup=False)
        return job

    def end(self, outcome: Outcome) -> None:
        """Take note of how a job ended."""
        key = outcome.product, outcome.seed
        self.running.pop(key, None)
        self._ended[key] = outcome
        if not console.is_terminal:
            console.print(f"{outcome.product} seed {outcome.seed}: {outcome.state} {_remark(outcome)}", markup=False)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a table that follows, where somebody watches."""
        if not console.is_terminal:
            yield
            return
        with Live(console=console, get_renderable=self._table, refresh_per_second=2):
            yield

    def _table(self) -> Table:
        states = [outcome.state for outcome in self.outcomes]
        table = Table(
            caption=f"{states.count('done')} done, {states.count('failed')} failed, {len(self.running)} running, "
            f"{len(self.waiting)} waiting"
        )
        for title in ("product", "seed", "state", "minutes", ""):
            table.add_column(title, no_wrap=True, justify="right" if title in ("seed", "minutes") else "left")
        now = time.monotonic()
        running = [(*key, "running", now - begin, "") for key, begin in list(self.running.items())]
        # The last to end comes last; failures stay in sight.
        ended = [o for o in list(self._ended.values()) if o.state != "waiting"]
        ended.sort(key=lambda outcome: outcome.state == "failed")
        room = max(1, console.height - len(running) - 6)
        rows: list[tuple[str, int, str, float, str]] = [
            (o.product, o.seed, o.state, o.seconds, _remark(o)) for o in ended[-room:]
        ]
        for product, seed, state, seconds, remark in rows + running:
            table.add_row(product, str(seed), state, f"{seconds / 60:.1f}", remark)
        return table


def _remark(outcome: Outcome) -> str:
    if outcome.error:
        return outcome.error
    auroc = (outcome.metrics or {}).get("image_auroc")
    return "" if auroc is None else f"image AUROC {auroc:.4f}"


def _print_table(summary: dict[str, Any]) -> None:
    from train.sweepsummary import SHOWN, format_cell

    table = Table(title=", ".join(f"{number} {state}" for state, number in summary["counts"].items() if number))
    for title in ("product", *(name.replace("_", " ") for name in SHOWN)):
        table.add_column(title, justify="left" if title == "product" else "right")
    for name, row in summary["products"].items():
        table.add_row(name, *(format_cell(row.get(metric)) for metric in SHOWN))
    output_console(markup=False).print(table)
