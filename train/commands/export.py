"""`train-export`: a finished run in, the one file for the station out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from edge.cli import CommandParser, command, console, require_extra
from edge.errors import EdgeError
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
    p = CommandParser(
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
        help="mixed precision: half the size, for GPUs; the score change on the golden frames is printed and bounded; "
        "where this machine has a GPU and TensorRT, its engine is built too, which takes minutes",
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
        console.print(escape(_build_engine(report.path)))
    console.print(
        f"{report.path}: {report.size / 1e6:.1f} MB, {report.golden} golden frames\n"
        f"  next: calib-threshold {report.path} --good DIR"
    )
    return 0


def _build_engine(path: Path) -> str:
    """Put this machine's engine into the bundle, if it has a GPU; return one line of what came of it."""
    from edge.inspection.cuda.available import require_cuda
    from edge.inspection.cuda.tensorrt_engine import BuildOptions

    try:
        require_cuda()
        from edge.inspection.cuda.provide import provide_engine
        from edge.inspection.cuda.pycuda_device import own_gpu

        done = provide_engine(path, own_gpu(), BuildOptions())
    except EdgeError as error:
        # The bundle is whole without: every GPU needs an engine of its own.
        return f"engine: none built: {error.problem}; where it will run: edge-build {path}"
    return f"engine: for {done.key.device}, TensorRT {done.key.version}, {done.key.precision}, in {done.path}"
