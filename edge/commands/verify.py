"""`edge-verify`: does this machine score a bundle's golden frames as they were recorded?"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from edge.cli import CommandParser, command, console, output_console, whole_number
from edge.errors import BundleMismatchError, GoldenError

if TYPE_CHECKING:
    from edge.bundle import Bundle
    from edge.inspection.inspector import GoldenResult

_EPILOG = """\
Golden frames travel in the bundle with the scores they had when it was exported.  `edge-run` checks them at every
start; this command shows each score, through every runtime of this machine.  No calibration is needed.  Where there is
a GPU and no engine for it yet, one is built first, which takes minutes, and kept in the cache; Ctrl-C ends it.

exit codes:
   0  every score is within the bundle's tolerance
   2  arguments that make no sense
   3  the bundle cannot be used: missing, damaged, too new, or without golden frames
   6  the runtime or precision is not on this machine
   9  a score moved, or a golden frame cannot be inspected
  70  internal error
 130  interrupted by Ctrl-C

example: edge-verify redi.plan --json
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Score the golden frames on each runtime, print all scores, then refuse those that moved."""
    args = _parser().parse_args(argv)
    # Loaded once the arguments are known to be good, so that --help does not wait for them.
    from edge.bundle import Bundle
    from edge.inspection.inspector import Inspector
    from edge.inspection.select import usable_runtimes

    runs: list[dict[str, Any]] = []
    refusals: list[GoldenError] = []
    with Bundle.open(args.bundle) as bundle:
        if not bundle.golden.frames:
            raise BundleMismatchError(
                f"{bundle.path} has no golden frames: there is nothing to verify this machine by",
                "export the run again with this release",
            )
        for name in usable_runtimes():
            # On a GPU the bundle's own precision counts.
            precision = args.precision if name == "portable" else "f32"
            with Inspector(
                bundle, runtime=name, threads=args.threads, precision=precision, uncalibrated=True
            ) as inspector:
                results = inspector.score_golden()
                try:
                    inspector.check_golden(results)
                except GoldenError as error:
                    refusals.append(error)
                runs.append(_as_dict(name, inspector.describe, results, bundle.golden.tolerance))
        if args.json:
            print(json.dumps(_report(bundle, runs)))
        else:
            _show(bundle, runs)
    if refusals:
        raise refusals[0]
    if not args.json:
        console.print("every golden frame scores as recorded")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-verify",
        description="Score a bundle's golden frames on this machine and compare with the scores recorded.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="redi.plan", help="the bundle")
    parser.add_argument(
        "--precision",
        default="f32",
        choices=("f32", "bf16"),
        help="arithmetic of the network on the CPU, as edge-run will be started with (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads of the network on the CPU (default: physical cores)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout instead of tables")
    return parser


def _as_dict(name: str, describe: str, results: Sequence[GoldenResult], tolerance: float) -> dict[str, Any]:
    frames = [
        {
            "frame": result.name,
            "recorded": result.recorded,
            # JSON has no NaN and no infinity.
            "here": result.score if math.isfinite(result.score) else None,
            "difference": result.error if math.isfinite(result.error) else None,
            "within": result.error <= tolerance,
            "reason": result.reason,
        }
        for result in results
    ]
    return {"runtime": name, "describe": describe, "frames": frames}


def _report(bundle: Bundle, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "bundle_id": bundle.bundle_id,
        "tolerance": bundle.golden.tolerance,
        "within": all(frame["within"] for run in runs for frame in run["frames"]),
        "runtimes": runs,
    }


def _show(bundle: Bundle, runs: Sequence[dict[str, Any]]) -> None:
    out = output_console(soft_wrap=not os.isatty(1))
    for run in runs:
        table = Table(title=escape(run["describe"]))
        for heading in ("frame", "recorded", "here", "difference", "tolerance"):
            table.add_column(heading, justify="left" if heading == "frame" else "right")
        for frame in run["frames"]:
            there = frame["here"] is not None
            table.add_row(
                escape(frame["frame"]),
                f"{frame['recorded']:.6g}",
                f"{frame['here']:.6g}" if there else "fault",
                f"{frame['difference']:.4%}" if there else "",
                f"{bundle.golden.tolerance:.2%}",
                style=None if frame["within"] else "red",
            )
        out.print(table)


if __name__ == "__main__":
    raise SystemExit(main(None))
