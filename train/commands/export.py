"""`train-export`: a finished run in, the one file for the station out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edge.cli import command, console, require_extra
from train.commands import NEEDED

EPILOG = """\
examples:
  train-export runs/cap --out redi.plan
  train-export runs/cap --out redi.plan --fp16

The bundle still needs a threshold: calib-threshold redi.plan --good DIR.

exit codes: 0 written; 2 usage; 7 the training images are gone; 10 the run is not finished, or fp16 costs too much
"""


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    p = argparse.ArgumentParser(
        prog="train-export",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", type=Path, help="the folder that train-run made")
    p.add_argument("--out", type=Path, default=Path("redi.plan"), metavar="FILE", help="the bundle (redi.plan)")
    p.add_argument(
        "--fp16",
        action="store_true",
        help="mixed precision: half the size, for GPUs; the score change on the golden frames is printed and bounded",
    )
    return p


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    require_extra("train", *NEEDED)

    from train.export.bundle import export_bundle
    from train.runfolder import RunFolder

    report = export_bundle(RunFolder(args.run), args.out, fp16=args.fp16)
    if args.fp16:
        console.print("engine: none built, as this release has no TensorRT adapter; the graph is in the bundle")
    console.print(
        f"{report.path}: {report.size / 1e6:.1f} MB, {report.golden} golden frames\n"
        f"  next: calib-threshold {report.path} --good DIR"
    )
    return 0
