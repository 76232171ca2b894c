"""`train-ablate`: what each part of ReDi is worth, as a table over data sets and seeds."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from edge.cli import CommandParser, command, console, progress, require_extra
from edge.errors import TrainingError, UsageError
from edge.machine import physical_cores
from train.commands import NEEDED
from train.commands.run import settings_parser
from train.commands.sweep import seeds

if TYPE_CHECKING:
    from train.ablation import Trained

EPILOG = """\
examples:
  train-ablate mvtec/bottle mvtec/grid --out ablation --seeds 0,1,2 --epochs 30
  train-ablate mvtec/bottle --out ablation --grid mine.json --minutes 10 --into docs/ablation.md

A grid FILE is a JSON object of train-run arguments by variant: {"full": [], "small bank": ["--prompts", "8"]}.
The same command resumes a grid that was stopped, and tries again what failed.

exit codes: 0 the table is whole; 2 usage; 7 a data set cannot be used; 10 some trainings failed, the table is written
without them; 130 interrupted (resume with the same command)
"""


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    p = CommandParser(
        prog="train-ablate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[settings_parser()],
    )
    p.add_argument("data", metavar="DATA", nargs="+", type=Path, help="data sets with test images")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="for the trainings and the table; resumed")
    p.add_argument("--seeds", type=seeds, default=[0, 1, 2], metavar="S,S…", help="each variant once for each (0,1,2)")
    p.add_argument("--grid", default="default", metavar="default|FILE", help="variants to compare")
    p.add_argument("--into", type=Path, metavar="PAGE", help="also put the table into this Markdown page")
    return p


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser().parse_args(argv)
    require_extra("train", *NEEDED)

    from train.ablation import Training, plan_trainings, read_grid, run_trainings
    from train.ablation_table import split_page, summarise, write_into, write_table
    from train.datasets import open_dataset

    grid = read_grid(args.grid)
    if args.into is not None:
        split_page(args.into)
    datasets: dict[str, Path] = {}
    for path in args.data:
        dataset = open_dataset(path, layout=args.layout, category=args.category)
        if not dataset.test:
            raise UsageError(f"{path}: no test images, so nothing can be compared", "see docs/datasets.md")
        if dataset.name in datasets:
            raise UsageError(f"{path}: a second data set called {dataset.name}", "name the folders differently")
        datasets[dataset.name] = path
    threads = args.threads or physical_cores()
    trainings = plan_trainings(args.out, datasets, grid, args.seeds, common_words(args), threads)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{args.out}: {error.strerror}", "choose another --out") from error
    told = shlex.join(["train-ablate", *argv])
    trained: list[Trained] = []
    with progress() as bar:
        task = bar.add_task("trainings", total=len(trainings), note="")

        def started(training: Training) -> None:
            bar.update(task, note=escape(f"{training.name} ({training.job.log})"))

        def done(one: Trained) -> None:
            trained.append(one)
            write_table(args.out, summarise(trained, grid, args.seeds, told))
            console.print(f"{escape(one.training.name)}: {escape(_figures(one))}")
            bar.update(task, advance=1, note="")

        run_trainings(trainings, started, done)
    table = write_table(args.out, summarise(trained, grid, args.seeds, told))
    if args.into is not None:
        write_into(args.into, table)
    print(table, end="")
    console.print(f"table: {args.out / 'ablation.md'}, every figure: {args.out / 'ablation.json'}")
    failed = sum(one.outcome.state != "done" for one in trained)
    if failed:
        raise TrainingError(
            f"{failed} of {len(trained)} trainings failed; the table says which and why",
            "mend the cause and give the same command again",
        )
    return 0


def common_words(args: argparse.Namespace) -> list[str]:
    """Return what was said of the trainings as arguments of `train-run`, but for the threads."""
    words = []
    for name, default in vars(settings_parser().parse_args([])).items():
        value = getattr(args, name)
        if value != default and name != "threads":
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    return words


def _figures(one: Trained) -> str:
    from train.ablation_table import COLUMNS

    metrics = one.outcome.metrics
    if metrics is None:
        return f"failed: {one.outcome.error}"
    values = [f"{title} {100 * value:.2f}" for name, title in COLUMNS.items() if (value := metrics[name]) is not None]
    reused = f", {' and '.join(one.training.reused)} taken over" if one.training.reused else ""
    return f"{', '.join(values)} ({one.outcome.seconds:.0f} s{reused})"
