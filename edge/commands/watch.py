"""edge-watch: print a station's events as they arrive."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from edge.cli import command, console, output_console, positive_number, whole_number
from edge.errors import UsageError
from edge.events.codec import EventMessage, StatusMessage, event_to_json
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.events.schema import Event
from edge.events.subscriber import Subscriber
from edge.inspection.result import Verdict

if TYPE_CHECKING:
    from edge.commands.watch_files import Saver

_EPILOG = """\
Start it before or after the station: it waits for one, and waits again when one has gone.  Events go to
stdout, everything else to stderr, so that `edge-watch --json > events.jsonl` holds events alone.

Each line of --json is one object with every field of docs/events.md (seq, source, score, threshold,
verdict, regions, ...) and `mask`, the mask as COCO compressed run lengths.

exit codes:
  0  watching has ended: --count, --idle, --until-stopped or Ctrl-C
  1  a mask or overlay cannot be written
  2  wrong arguments, or a folder that cannot be made or found
  4  --images sim:... has a wrong option
  5  the endpoint is invalid
"""

_COLOURS = {Verdict.OK: "green", Verdict.NG: "bold red", Verdict.LATE: "yellow", Verdict.FAULT: "bold magenta"}
_SOURCE_WIDTH = 28
_COLUMNS = f"{'seq':>7}  {'time':<12}  {'camera':<8}  {'source':<{_SOURCE_WIDTH}}  {'verdict':<7}  "
_COLUMNS += f"{'score':>8}  {'limit':>8}  {'ms':>7}  regions"

# How long there may be no station before we say that we are waiting for one.
_PATIENCE_S = 1.0
# After so many we only count the messages that are skipped.
_SKIPS_SHOWN = 3
# The year 2116: a wall clock beyond is no clock.
_LATEST_NS = 1 << 62


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run edge-watch."""
    arguments = _parser().parse_args(argv)
    if arguments.images is not None and arguments.save_overlays is None:
        raise UsageError("--images is for --save-overlays", "add --save-overlays DIR")
    watch = _Watch(arguments)
    with Subscriber(arguments.endpoint, camera=arguments.camera) as subscriber:
        try:
            watch.run(subscriber)
        except KeyboardInterrupt:
            # The usual way to end watching.
            pass
        finally:
            watch.close(subscriber)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-watch",
        description="Print a station's events as they arrive.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "endpoint",
        nargs="?",
        default=DEFAULT_ENDPOINT,
        help="where edge-run publishes: tcp://ADDRESS:PORT or ipc:///PATH (default: %(default)s)",
    )
    parser.add_argument("--camera", metavar="NAME", help="only this camera")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of the table")
    parser.add_argument(
        "--only",
        type=_verdicts,
        metavar="VERDICTS",
        default=frozenset(Verdict),
        help="show and save only these, separated by commas: ok, ng, late, fault",
    )
    parser.add_argument("--count", type=whole_number, metavar="N", help="end after N shown events")
    parser.add_argument(
        "--idle",
        type=positive_number,
        metavar="SECONDS",
        help="end when nothing has arrived for so long, waiting for the station included",
    )
    parser.add_argument("--until-stopped", action="store_true", help="end when the station says that it has stopped")
    parser.add_argument(
        "--save-masks",
        type=Path,
        metavar="DIR",
        help="save each mask that is not empty as BOOT-SEQ-SOURCE.png, in the frame's size, 255 where marked",
    )
    parser.add_argument(
        "--save-overlays",
        type=Path,
        metavar="DIR",
        help="save each image with mask, regions and verdict drawn on it as BOOT-SEQ-SOURCE.png",
    )
    parser.add_argument(
        "--images",
        metavar="CAMERA",
        help="what edge-run inspects, a folder or sim:..., to find the images for --save-overlays; "
        "without it, and for other cameras, what was found is drawn on black",
    )
    return parser


def _verdicts(text: str) -> frozenset[Verdict]:
    try:
        return frozenset(Verdict(part.strip().lower()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: use ok, ng, late, fault, separated by commas") from error


class _Gaps:
    """Counts the events that were sent and never arrived, by the sequence numbers within each boot."""

    def __init__(self) -> None:
        self.missing = 0
        self._last: dict[str, int] = {}

    def event(self, boot_id: str, seq: int) -> int:
        """Note that event `seq` is here; return how many before it are missing."""
        return self._see(boot_id, seq - 1, seq)

    def status(self, boot_id: str, last_seq: int) -> int:
        """Note that event `last_seq` has been sent; return how many up to it are missing."""
        return self._see(boot_id, last_seq, last_seq)

    def _see(self, boot_id: str, due: int, last: int) -> int:
        # What a station sent before the first that is heard of it is not missing: nobody was there to miss it.
        known = self._last.get(boot_id, due)
        missing = max(0, due - known)
        self.missing += missing
        self._last[boot_id] = max(known, last)
        return missing


class _Watch:
    """One run of edge-watch: what it shows, saves and counts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._table = None if arguments.json else output_console()
        self._savers = list(_savers(arguments))
        self._gaps = _Gaps()
        self._verdicts: Counter[Verdict] = Counter()
        self._shown = 0
        self._running: set[str] = set()
        self._rejected = 0
        self._unreadable = 0

    def run(self, subscriber: Subscriber) -> None:
        """Show events until one of the asked-for ends."""
        if self._table is not None:
            self._table.print(Text(_COLUMNS, style="bold"))
        waiting = False
        heard = time.monotonic()
        while True:
            message = subscriber.receive(self._patience(heard))
            self._report_rejected(subscriber)
            if message is None and not subscriber.connected and not waiting:
                _note(f"waiting for a station at {subscriber.endpoint}")
            waiting = not subscriber.connected
            if message is not None:
                heard = time.monotonic()
                if isinstance(message, StatusMessage):
                    ended = self._status(message)
                else:
                    ended = self._event(message)
                if ended:
                    return
            elif self._arguments.idle is not None and time.monotonic() - heard >= self._arguments.idle:
                return

    def close(self, subscriber: Subscriber) -> None:
        """Print the closing line."""
        verdicts = ", ".join(f"{self._verdicts[verdict]} {verdict.value}" for verdict in Verdict)
        line = f"{sum(self._verdicts.values())} events: {verdicts}; {self._gaps.missing} missing"
        if subscriber.rejected:
            line += f"; {subscriber.rejected} foreign or damaged messages skipped"
        if self._unreadable:
            line += f"; {self._unreadable} masks unreadable"
        for saver in self._savers:
            line += f"; {saver.summary()}"
        _note(line)

    def _patience(self, heard: float) -> float:
        if self._arguments.idle is None:
            return _PATIENCE_S
        return float(min(_PATIENCE_S, max(0.0, heard + self._arguments.idle - time.monotonic())))

    def _status(self, message: StatusMessage) -> bool:
        status = message.status
        _warn(status.camera, self._gaps.status(status.boot_id, status.last_seq), status.last_seq)
        if status.state != "stopped":
            self._running.add(status.camera)
            return False
        self._running.discard(status.camera)
        return bool(self._arguments.until_stopped) and not self._running

    def _event(self, message: EventMessage) -> bool:
        event = message.event
        _warn(event.camera, self._gaps.event(event.boot_id, event.seq), event.seq - 1)
        self._running.add(event.camera)
        self._verdicts[event.verdict] += 1
        if event.verdict not in self._arguments.only:
            return False
        if self._table is None:
            print(event_to_json(message).decode(), flush=True)
        else:
            self._table.print(_row(event))
        if self._savers:
            self._save(message)
        self._shown += 1
        return bool(self._shown == self._arguments.count)

    def _save(self, message: EventMessage) -> None:
        try:
            mask = message.mask_array()
        except ValueError as error:
            self._unreadable += 1
            _note(f"seq {message.event.seq}: {error}")
            return
        for saver in self._savers:
            saver.save(message.event, mask)

    def _report_rejected(self, subscriber: Subscriber) -> None:
        if subscriber.rejected > self._rejected:
            if self._rejected < _SKIPS_SHOWN:
                _note(f"skipped: {_printable(subscriber.last_rejection)}")
            self._rejected = subscriber.rejected


def _savers(arguments: argparse.Namespace) -> Iterator[Saver]:
    if arguments.save_masks is None and arguments.save_overlays is None:
        return
    # OpenCV, which watching alone need not wait for.
    from edge.commands.watch_files import MaskSaver, OverlaySaver

    if arguments.save_masks is not None:
        yield MaskSaver(arguments.save_masks)
    if arguments.save_overlays is not None:
        yield OverlaySaver(arguments.save_overlays, arguments.images)


def _note(text: str) -> None:
    console.print(escape(text), style="dim")


def _warn(camera: str, missing: int, last: int) -> None:
    if missing:
        gap = f"event {last} is" if missing == 1 else f"events {last - missing + 1} to {last} are"
        console.print(escape(f"{_printable(camera)}: {gap} missing"), style="yellow")


def _printable(text: str) -> str:
    # What a station names its frames may hold anything, terminal escapes included.
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _clock(wall_ns: int) -> str:
    if not 0 < wall_ns < _LATEST_NS:
        return "-"
    moment = datetime.fromtimestamp(wall_ns // 10**9)
    return f"{moment:%H:%M:%S}.{wall_ns // 10**6 % 1000:03d}"


def _row(event: Event) -> Text:
    source = _printable(event.source)
    if len(source) > _SOURCE_WIDTH:
        source = "…" + source[1 - _SOURCE_WIDTH :]
    row = Text(f"{event.seq:>7}  {_clock(event.decided_at_ns):<12}  {_printable(event.camera):<8}  ")
    row.append(f"{source:<{_SOURCE_WIDTH}}  ")
    row.append(f"{event.verdict.value.upper():<7}  ", _COLOURS[event.verdict])
    row.append(f"{_number(event.score):>8}  {_number(event.threshold):>8}  ")
    row.append(f"{_number(event.latency_ms.get('total')):>7}  ")
    if event.reason:
        row.append(_printable(event.reason))
    elif event.regions:
        x, y, width, height = max(event.regions, key=lambda region: region.area_px).bbox
        row.append(f"{len(event.regions)}, largest {width}x{height} at {x},{y}")
    return row
