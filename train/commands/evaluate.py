"""`train-eval`: how well a model tells defects from good parts, on labelled test images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from edge.cli import CommandParser, command, console, output_console, require_extra
from train.commands import NEEDED
from train.commands.run import input_size

if TYPE_CHECKING:
    from train.evaluate import Evaluation, Scorer

EPILOG = """\
examples:
  train-eval runs/bottle mvtec/bottle --report report
  train-eval redi.plan mvtec/bottle --json

A run folder is scored with PyTorch, a bundle with the station's own inspector; both give the same scores.

exit codes: 0 evaluated; 2 usage; 3 the bundle cannot be used; 7 the images cannot be used; 10 the run is not finished
"""


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    p = CommandParser(
        prog="train-eval", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("model", metavar="RUN", type=Path, help="the folder that train-run made, or a bundle")
    p.add_argument("data", metavar="DATA", type=Path, help="a data set with test images (see docs/datasets.md)")
    p.add_argument(
        "--layout",
        default="auto",
        help="mvtec, visa, … (docs/datasets.md lists them), where it is not recognised (auto)",
    )
    p.add_argument("--category", help="category of a data set that holds several")
    p.add_argument(
        "--size", metavar="S|WxH", help="compare maps and masks at this size, multiples of 32 (the size of the maps)"
    )
    p.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    p.add_argument("--report", type=Path, metavar="DIR", help="write an HTML report with curves and overlays")
    return p


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    size = input_size(args.size) if args.size else None
    require_extra("train", *NEEDED)

    from train.datasets import open_dataset
    from train.evaluate import evaluate
    from train.report import write_report

    dataset = open_dataset(args.data, layout=args.layout, category=args.category)
    with ExitStack() as stack:
        scorer, threshold, trained = _open(args.model, stack)
        evaluation = evaluate(scorer, dataset, size=size, trained=trained)
    if args.report is not None:
        title = f"{dataset.name} — {args.model.name}"
        write_report(args.report, evaluation, title=title, threshold=threshold)
        console.print(f"report: {args.report / 'index.html'}")
    if args.json:
        print(evaluation.to_json())
    else:
        _print_table(evaluation, threshold)
    return 0


def _open(model: Path, stack: ExitStack) -> tuple[Scorer, float | None, frozenset[str]]:
    """Return the scorer of a run folder or a bundle, the threshold where one is known, and what was trained on."""
    if model.is_dir():
        from train.runfolder import RunFolder
        from train.trained import load_trained

        run = load_trained(RunFolder(model))
        return run.scorer(), None, frozenset(run.digests)
    from edge.bundle import Bundle
    from edge.inspection.inspector import Inspector
    from train.evaluate import BundleScorer

    bundle = stack.enter_context(Bundle.open(model))
    inspector = stack.enter_context(Inspector(bundle, uncalibrated=True))
    return BundleScorer(inspector), bundle.calibration.threshold if bundle.calibration else None, bundle.trained


def _print_table(evaluation: Evaluation, threshold: float | None) -> None:
    summary = evaluation.summary()
    table = Table(title=f"{evaluation.dataset}: {len(evaluation.records)} images")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in summary["metrics"].items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
        elif value is None:
            table.add_row(name, "—")
    if threshold is not None:
        for label, name in ((1, "defects rejected"), (0, "good parts rejected")):
            scores = [record.score for record in evaluation.records if record.label == label]
            rejected = sum(score > threshold for score in scores)
            table.add_row(f"{name} at the threshold {threshold:.4g}", f"{rejected} of {len(scores)}")
    output_console().print(table)
    for skipped in evaluation.skipped:
        console.print(f"unreadable, skipped: {skipped}")
