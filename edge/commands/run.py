"""`edge-run`: inspect what a camera sees and publish one event per frame."""

from __future__ import annotations

import argparse
import functools
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape

from edge.cli import command, console, positive_number, progress, whole_number
from edge.errors import UsageError
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.frames import MAX_SLOTS, MIN_SLOTS
from edge.inspection.result import Verdict
from edge.manifest import Calibration

if TYPE_CHECKING:
    from edge.bundle import Bundle
    from edge.frames import Slot
    from edge.inspection.inspector import Inspector
    from edge.station import Station
    from edge.summary import Summary

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_EPILOG = f"""\
cameras:
  0, /dev/video0               a device
  rtsp://…, line.mp4           a stream, a video file
  part.png, FOLDER, 'a/*.png'  images, in natural order; each gets exactly one event
  sim:, sim:seed=3,count=100   the simulated line; its options: seed, count, rate (parts/s), defects (share),
                               width, height, product

A live camera is never waited for: the newest frame is inspected, those that came meanwhile are skipped and counted.
A live camera that is lost is opened again, after pauses of 0.5 s to 8 s.  A frame that cannot be inspected gets the
verdict `fault` and a reason, never `ok`.  On SIGINT (Ctrl-C) and SIGTERM, what was captured is finished first.

exit codes:
   0  finished, or stopped by SIGINT or SIGTERM
   2  arguments that make no sense
   3  the bundle cannot be used: missing, damaged, too new, without calibration
   4  the camera cannot be opened, or a file that is its source is lost
   5  the endpoint cannot be bound
   6  the runtime or precision is not on this machine
   9  the bundle's golden frames do not score as recorded
  70  internal error
 130  interrupted by Ctrl-C before there was a camera to stop; 143 by SIGTERM

example: edge-run --camera parts/ --engine redi.plan & edge-watch {DEFAULT_ENDPOINT}
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run one station until its camera ends or a signal stops it."""
    args = _parser().parse_args(argv)
    # Loaded once the arguments are known to be good, so that --help does not wait for them.
    from edge.bundle import Bundle
    from edge.cameras.open import open_camera
    from edge.events.publisher import Publisher
    from edge.inspection.inspector import Inspector
    from edge.station import SWITCH_INTERVAL_S, Station

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as stack:
        # Put back last: a signal must not cut off the events that still wait to leave when the publisher closes.
        stack.enter_context(_signal_handlers_kept())
        # First of all, so that subscribers that wait connect while the model loads.
        publisher = None
        if args.publish != "none":
            publisher = stack.enter_context(Publisher(args.publish, camera=args.name))
        bundle = stack.enter_context(Bundle.open(args.engine))
        calibration = None if args.threshold is None else _with_threshold(bundle, args.threshold)
        inspector = stack.enter_context(
            Inspector(
                bundle,
                runtime=args.runtime,
                threads=args.threads,
                precision=args.precision,
                calibration=calibration,
            )
        )
        console.print(escape(inspector.describe))
        _verify_golden(inspector)
        reopen = functools.partial(open_camera, args.camera, name=args.name)
        camera = stack.enter_context(reopen())
        frames = camera.total if args.count is None else min(args.count, camera.total or args.count)
        save = None if args.save is None else _OverlaySaver(args.save)
        with _progress(frames) as advance:
            station = Station(
                camera,
                inspector,
                publisher,
                slots=args.slots,
                count=args.count,
                frame_timeout_s=args.frame_timeout,
                reopen=reopen,
                on_result=lambda slot: _each(slot, save, advance),
            )
            stack.callback(lambda: _show(station.summary, args.json))
            _stop_on_signals(station)
            if publisher is not None:
                publisher.settle()
                console.print(f"publishing {escape(args.name)} on {escape(publisher.endpoint)}")
            station.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-run",
        description="Inspect what a camera sees with the model in a bundle and publish one event per frame.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--camera", required=True, metavar="C", help="what to inspect, see below")
    parser.add_argument("--engine", required=True, type=Path, metavar="FILE", help="the bundle, such as redi.plan")
    parser.add_argument(
        "--publish",
        default=DEFAULT_ENDPOINT,
        metavar="ENDPOINT",
        help="where events are published, tcp://ADDRESS:PORT, ipc://PATH or none (default: %(default)s)",
    )
    parser.add_argument("--name", default="cam0", help="the camera's name in events (default: %(default)s)")
    parser.add_argument("--count", type=whole_number, metavar="N", help="end after N captured frames")
    parser.add_argument(
        "--threshold",
        type=positive_number,
        metavar="X",
        help="decide by this image score instead of the bundle's calibrated threshold",
    )
    # Written out, not imported: the lists live beside code that loads OpenVINO.  A test compares them.
    parser.add_argument("--runtime", default="auto", choices=("auto", "portable", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--precision",
        default="f32",
        choices=("f32", "bf16"),
        help="arithmetic of the network: f32 scores alike on every CPU, bf16 is faster where the CPU has it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads of the network (default: physical cores)"
    )
    parser.add_argument(
        "--slots",
        type=_slots,
        default=4,
        metavar="N",
        help=f"frame slots, {MIN_SLOTS} to {MAX_SLOTS} (default: %(default)s)",
    )
    parser.add_argument(
        "--frame-timeout",
        type=positive_number,
        default=5.0,
        metavar="S",
        help="silence of the camera for so many seconds is a `fault` event (default: %(default)s)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="save a picture of each `ng` frame with its regions (takes time: PNG)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON line on stdout")
    return parser


def _with_threshold(bundle: Bundle, threshold: float) -> Calibration:
    """Return the bundle's decision rule with another threshold; where it has none, one of the threshold alone."""
    if bundle.calibration is not None:
        was = f" instead of the calibrated {bundle.calibration.threshold:.4g}"
        # Never above the threshold, so that an `ng` part always has a region.
        pixel_threshold = min(bundle.calibration.pixel_threshold, threshold)
        rule = msgspec.structs.replace(bundle.calibration, threshold=threshold, pixel_threshold=pixel_threshold)
    else:
        was = ", the bundle has no calibrated one"
        rule = Calibration(
            threshold=threshold,
            pixel_threshold=threshold,
            false_reject=1.0,
            false_reject_bound=1.0,
            confidence=0.0,
            images=0,
            method="given by hand",
            created="",
            good_mean=0.0,
            good_std=0.0,
            good_max=0.0,
        )
    console.print(
        f"[yellow]note[/]: threshold {threshold:.4g} given by hand{was}; no false-reject rate is known for it"
    )
    return rule


def _verify_golden(inspector: Inspector) -> None:
    results = inspector.verify_golden()
    if results:
        worst = max(result.error for result in results)
        console.print(f"golden frames: {len(results)} score as recorded, largest difference {worst:.3%}")
    else:
        console.print("[yellow]note[/]: the bundle has no golden frames to check this machine by")


def _each(slot: Slot, *actions: Callable[[Slot], None] | None) -> None:
    for action in actions:
        if action is not None:
            action(slot)


class _OverlaySaver:
    """Saves `ng` frames with what was found drawn on them.  A full disk ends the saving, not the station."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--save {folder}: {error.strerror or error}", "name a folder that can be written"
            ) from error

    def __call__(self, slot: Slot) -> None:
        from edge.frames import PixelFormat
        from edge.images import IMAGE_SUFFIXES, write_png
        from edge.overlay import draw_overlay

        found = slot.inspection
        if found is None or found.verdict is not Verdict.NG or self._broken:
            return
        image = slot.pixels[..., ::-1] if slot.pixel_format is PixelFormat.RGB8 else slot.pixels
        mask = slot.frame_mask.astype(bool)
        picture = draw_overlay(
            image, found.verdict, score=found.score, threshold=found.threshold, mask=mask, regions=found.regions
        )
        # Sources may be paths or addresses: keep what any file system can hold.
        name = Path(slot.meta.source)
        source = str(name.with_suffix("")) if name.suffix.lower() in IMAGE_SUFFIXES else str(name)
        source = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")[-100:]
        file = self._folder / f"{slot.meta.frame_id:06d}-{source}.png"
        try:
            write_png(file, picture)
        except OSError as error:
            self._broken = True
            console.print(
                f"[yellow]warning[/]: {escape(str(file))}: {error.strerror or error}; no more pictures are saved"
            )


@contextmanager
def _progress(frames: int | None) -> Iterator[Callable[[Slot], None] | None]:
    """Show a progress bar where a person looks and the number of frames is known; yield what moves it on."""
    if frames is None or not console.is_terminal:
        if console.is_terminal:
            console.print("inspecting until Ctrl-C; edge-watch shows each verdict")
        yield None
        return
    verdicts: dict[str, int] = {}
    with progress(transient=True) as bar:
        task = bar.add_task("inspecting", total=frames, note="")

        def advance(slot: Slot) -> None:
            if slot.inspection is not None:
                verdict = slot.inspection.verdict.value
                verdicts[verdict] = verdicts.get(verdict, 0) + 1
            note = " ".join(f"{name} {count}" for name, count in sorted(verdicts.items()))
            bar.update(task, advance=1, note=note)

        yield advance


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put the handlers of the signals that end a station back as they were."""
    before = {number: signal.getsignal(number) for number in _END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_on_signals(station: Station) -> None:
    """Let SIGINT and SIGTERM end the station in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Finishing is bounded by the frames in the slots: a second signal would only lose their verdicts.
        for each in _END_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        station.stop()

    for number in _END_SIGNALS:
        signal.signal(number, stop)


def _show(summary: Summary, as_json: bool) -> None:
    console.print(f"[bold]{summary.headline}[/]")
    if summary.frames:
        console.print(summary.table())
    if as_json:
        print(json.dumps(summary.as_dict()))


def _slots(text: str) -> int:
    value = whole_number(text)
    if not MIN_SLOTS <= value <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not from {MIN_SLOTS} to {MAX_SLOTS}")
    return value
