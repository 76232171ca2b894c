"""`edge-bench`: how fast is the station on this machine?"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from edge.cli import CommandParser, command, console, output_console, whole_number

if TYPE_CHECKING:
    from edge.bench import Timing
    from edge.gpu_clock import GpuClock
    from edge.machine import Clock

# Below, the simulated line draws nothing; above, a station's frames would fill gigabytes.
_MIN_SIDE, _MAX_SIDE = 64, 4096
_MIN_FRAMES = 2

_EPILOG = """\
Frames of the simulated line come from memory: no camera, no decoder.  Events go to a subscriber on loopback.  Nothing
is decided, so that no regions are sought; most parts of a line have none.

`total` is before + core + after, camera bytes to verdict.  What a frame waits for the one before it is left out, as
frames from memory always wait; `publish` overlaps with the next frame.  `not core` is the share of `total` that is
not the network, the median over the frames.  Percentiles are right to 1 %.  On a GPU the network and what follows it
are timed by the device's clock, and `before` is all the rest, copying and launching too.

exit codes:
   0  measured
   1  an event was lost on loopback: nothing is reported
   2  arguments that make no sense
   3  the bundle cannot be used: missing, damaged, too new
   4  the frames cannot be inspected with this bundle
   6  the runtime or precision is not on this machine
  70  internal error
 130  interrupted by Ctrl-C: nothing is reported

example: edge-bench redi.plan --frames 500 --side 1080 --json
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Time the station and print a table, or one JSON line."""
    args = _parser().parse_args(argv)
    # Loaded once the arguments are known to be good, so that --help does not wait for them.
    from edge.bench import WARM_UP, simulated_frames, time_station
    from edge.bundle import Bundle
    from edge.gpu_clock import gpu_clock
    from edge.machine import clock

    with Bundle.open(args.bundle) as bundle:
        console.print(f"timing {args.frames} frames of {args.side} x {args.side}, after {WARM_UP} to warm up")
        timing = time_station(
            bundle,
            simulated_frames(args.side),
            args.frames,
            runtime=args.runtime,
            threads=args.threads,
            precision=args.precision,
        )
        # At the end of the load, when the processor runs as fast as it keeps running.
        speed = clock()
        gpu = gpu_clock() if timing.runtime.startswith("cuda") else None
        report = _report(bundle.bundle_id, args.side, timing, speed, gpu)
    if args.json:
        print(json.dumps(report))
    else:
        _show(report, speed, gpu)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-bench",
        description="Time the station, camera bytes to published event, on frames from memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="redi.plan", help="the bundle, calibrated or not")
    parser.add_argument(
        "--frames", type=_frames, default=200, metavar="N", help="timed frames, from 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--side",
        type=_side,
        default=640,
        metavar="S",
        help=f"side of the square camera frame in pixels, {_MIN_SIDE} to {_MAX_SIDE} (default: %(default)s)",
    )
    parser.add_argument("--runtime", default="auto", choices=("auto", "portable", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--precision", default="f32", choices=("f32", "bf16"), help="arithmetic of the network (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads of the network (default: physical cores)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout instead of a table")
    return parser


def _frames(text: str) -> int:
    value = whole_number(text)
    if value < _MIN_FRAMES:
        raise argparse.ArgumentTypeError(f"{text!r} frames, but a rate needs at least {_MIN_FRAMES}")
    return value


def _side(text: str) -> int:
    value = whole_number(text)
    if not _MIN_SIDE <= value <= _MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is not from {_MIN_SIDE} to {_MAX_SIDE}")
    return value


def _report(bundle_id: str, side: int, timing: Timing, speed: Clock, gpu: GpuClock | None) -> dict[str, Any]:
    from edge.summary import LatencyHistogram

    histograms = {}
    for stage, values in {**timing.stages, "total": timing.total}.items():
        histograms[stage] = LatencyHistogram()
        for ms in values:
            histograms[stage].add(float(ms))
    histograms["publish"] = timing.publish
    return {
        "bundle_id": bundle_id,
        "runtime": timing.runtime,
        "frame": [side, side],
        "frames": timing.publish.count,
        "frames_per_s": round(timing.frames_per_s, 2),
        "not_core": round(timing.not_core, 4),
        "latency_ms": {stage: histogram.as_dict() for stage, histogram in histograms.items()},
        "bytes_per_frame": {
            "frame": timing.moved.frame,
            "map": timing.moved.anomaly_map,
            "mask": timing.moved.mask,
            "event": round(timing.moved.event, 1),
            "to_and_from_gpu": round(timing.moved.copied, 1),
        },
        "gpu_copies_per_frame": round(timing.moved.copies, 2),
        "cpu": {"governors": list(speed.governors), "mhz": None if speed.mhz is None else list(speed.mhz)},
        "gpu": None if gpu is None else gpu.as_dict(),
    }


def _show(report: dict[str, Any], speed: Clock, gpu: GpuClock | None) -> None:
    out = output_console(soft_wrap=not os.isatty(1))
    table = Table(title=escape(report["runtime"]))
    stages = report["latency_ms"]
    table.add_column("latency, ms")
    for heading in next(iter(stages.values())):
        table.add_column(heading, justify="right")
    for stage, row in stages.items():
        table.add_row(stage, *(f"{ms:.2f}" for ms in row.values()))
    out.print(table)
    moved = report["bytes_per_frame"]
    out.print(f"{report['frames_per_s']:.1f} frames/s; not core {report['not_core']:.1%} of total")
    out.print(
        f"bytes per frame: {moved['frame']} copied into the slot, {moved['map']} map and {moved['mask']} mask "
        f"written, {moved['event']:.0f} sent"
    )
    if gpu is not None:
        out.print(
            f"to and from the GPU: {report['gpu_copies_per_frame']:.1f} copies of {moved['to_and_from_gpu']:.0f} bytes "
            "in all per frame"
        )
        out.print(f"GPU: {escape(gpu.describe)}")
    out.print(f"processor: {escape(speed.describe)}")


if __name__ == "__main__":
    raise SystemExit(main(None))
