"""The arguments of `edge-run`, from the command line and from a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.cli import CommandParser, positive_number, whole_number
from edge.commands.archive_arguments import add_archive_arguments
from edge.commands.journal_arguments import add_journal_arguments
from edge.commands.key_arguments import add_server_arguments
from edge.commands.log_arguments import add_log_arguments
from edge.commands.preview_arguments import add_preview_arguments
from edge.commands.supervision_arguments import add_supervision_arguments
from edge.config import CameraConfig, cameras_from_arguments, read_station_file
from edge.errors import UsageError
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.frames import MAX_SLOTS, MIN_SLOTS

EPILOG = f"""\
cameras:
  0, /dev/video0               a device
  v4l2:/dev/video0             the same without conversion, straight into memory: NV12, Bayer, BGR, RGB or grey;
                               its options: ?format=NV12&width=1920&height=1080
  rtsp://…, line.mp4           a stream, a video file
  part.png, FOLDER, 'a/*.png'  images, in natural order; each gets exactly one event
  sim:, sim:seed=3,count=100   the simulated line; its options: seed, count, rate (parts/s), defects (share),
                               width, height, product, index (frame, or encoder for triggered parts)
  NAME=C                       the same, with its name in events; give --camera several times for several cameras

A free-running live camera is never waited for: the newest frame is inspected, those that came meanwhile are skipped
and counted.  With a trigger, each part gets exactly one verdict, also across a crash: `late` after its deadline,
`fault` without a frame.  A live camera that is lost is opened again, after pauses of 0.5 s to 8 s.  A frame that
cannot be inspected gets the verdict `fault` and a reason, never `ok`.  On SIGINT (Ctrl-C) and SIGTERM, what was
captured is finished first.

exit codes:
   0  finished, or stopped by SIGINT or SIGTERM
   2  arguments that make no sense
   3  the bundle cannot be used: missing, damaged, too new, without calibration, not signed where that is required
   4  the camera cannot be opened, or a file that is its source is lost
   5  the endpoint cannot be bound, or other machines could reach it and there are no keys
   6  the runtime or precision is not on this machine
   9  the bundle's golden frames do not score as recorded
  11  keys that are missing, malformed or open to others
  12  the journal's folder cannot be used, or is in use by another station
  70  internal error
 130  interrupted by Ctrl-C before there was a camera to stop; 143 by SIGTERM

example: edge-run --camera parts/ --engine redi.plan & edge-watch {DEFAULT_ENDPOINT}
"""

# Options of which a file would make no sense.
_NOT_IN_FILES = ("camera", "config", "help")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[CameraConfig]]:
    """Return the options and the cameras; the command line wins over the file.

    Raises:
        UsageError: they make no sense.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args = parser.parse_args(argv)
    configured: list[CameraConfig] = []
    if args.config is not None:
        kinds = {
            text[2:]: "flag" if action.nargs == 0 else "value"
            for action in parser._actions
            for text in action.option_strings
            if text.startswith("--") and text[2:] not in _NOT_IN_FILES
        }
        file = read_station_file(args.config, kinds)
        args = parser.parse_args([*file.words, *argv])
        configured = file.cameras
    if args.engine is None:
        raise UsageError("no bundle", "--engine redi.plan, or engine = 'redi.plan' in the file of --config")
    if not args.camera:
        if not configured:
            raise UsageError("no camera", "--camera 0, or a [[camera]] in the file of --config; --help lists the kinds")
        return args, configured
    common = {
        "trigger": args.trigger,
        "deadline_ms": args.deadline_ms,
        "trigger_window_ms": args.trigger_window_ms,
        "frame_timeout": args.frame_timeout,
        "slots": args.slots,
        "count": args.count,
    }
    return args, cameras_from_arguments(args.camera, args.name, common)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `edge-run`."""
    parser = CommandParser(
        prog="edge-run",
        description="Inspect what cameras see with the model in a bundle and publish one event per frame or part.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--camera", action="append", metavar="C", help="what to inspect, see below; several times for several cameras"
    )
    parser.add_argument("--engine", type=Path, metavar="FILE", help="the bundle, such as redi.plan")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a TOML file of these options and of [[camera]] tables"
    )
    parser.add_argument(
        "--publish",
        default=DEFAULT_ENDPOINT,
        metavar="ENDPOINT",
        help="where events are published, tcp://ADDRESS:PORT, ipc://PATH or none (default: %(default)s)",
    )
    parser.add_argument("--name", help="the only camera's name in events (default: cam0)")
    parser.add_argument("--count", type=whole_number, metavar="N", help="end after N captured frames of each camera")
    parser.add_argument(
        "--threshold",
        type=positive_number,
        metavar="X",
        help="decide by this image score instead of the bundle's calibrated threshold",
    )
    _add_trigger_arguments(parser)
    _add_model_arguments(parser)
    parser.add_argument(
        "--slots",
        type=_slots,
        default=4,
        metavar="N",
        help=f"frame slots of each camera, {MIN_SLOTS} to {MAX_SLOTS} (default: %(default)s)",
    )
    parser.add_argument(
        "--frame-timeout",
        type=positive_number,
        default=5.0,
        metavar="S",
        help="silence of a camera for so many seconds is a `fault` event (default: %(default)s)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="save a picture of each `ng` frame with its regions (takes time: PNG)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON line for each camera")
    for title, add in (
        ("journal", add_journal_arguments),
        ("image archive", add_archive_arguments),
        ("previews", add_preview_arguments),
        ("keys", add_server_arguments),
        ("supervision", add_supervision_arguments),
        ("logs", add_log_arguments),
    ):
        add(parser.add_argument_group(title))
    return parser


def _add_trigger_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("triggers")
    group.add_argument(
        "--trigger",
        default="none",
        metavar="T",
        help="what starts an inspection: none, every frame (default); request, a request at the control endpoint; "
        "camera, the camera's own hardware trigger: each of its frames is a part; gpio:CHIP:LINE[:rising|falling]",
    )
    group.add_argument(
        "--deadline-ms",
        type=positive_number,
        metavar="MS",
        help="a verdict later than this after its trigger is `late`; a part without a frame by then is a `fault`",
    )
    group.add_argument(
        "--trigger-window-ms",
        type=positive_number,
        default=1000.0,
        metavar="MS",
        help="a live camera's frame shows the part if it was taken within this time after the trigger "
        "(default: %(default)g)",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    # Written out, not imported: the lists live beside code that loads OpenVINO.  A test compares them.
    group.add_argument(
        "--runtime",
        default="auto",
        choices=("auto", "portable", "cuda"),
        help="cuda: on a GPU, with TensorRT; portable: on any CPU; auto: cuda where all of it is there; says why "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        default="f32",
        choices=("f32", "bf16"),
        help="arithmetic of the network: f32 scores alike on every CPU, bf16 is faster where the CPU has it "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads of the network (default: physical cores)"
    )
    group.add_argument(
        "--prompt-memory",
        type=whole_number,
        metavar="MIB",
        help="a GPU's memory for prompts; those beyond it are read over the bus (default: 256)",
    )
    group.add_argument(
        "--follow",
        action="store_true",
        help="take over a bundle that replaces FILE while running, once its golden frames score as recorded",
    )
    group.add_argument(
        "--require-signed",
        action="store_true",
        help="run only a bundle that was signed by a key which the folder of keys allows",
    )


def _slots(text: str) -> int:
    value = whole_number(text)
    if not MIN_SLOTS <= value <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not from {MIN_SLOTS} to {MAX_SLOTS}")
    return value
