"""edge-watch: print a station's events as they arrive."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from edge.cli import CommandParser, command, console, output_console, positive_number, whole_number
from edge.commands.key_arguments import add_client_arguments, client_keys
from edge.commands.watch_log import LogCursor
from edge.errors import UsageError
from edge.events.codec import EventMessage, StatusMessage, event_to_json
from edge.events.durable import DurableSubscriber
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.events.follow import Gap
from edge.events.schema import Event, numbering
from edge.events.subscriber import Subscriber
from edge.inspection.result import Verdict

if TYPE_CHECKING:
    from edge.commands.watch_files import Saver

_EPILOG = """\
Start it before or after the station: it waits for one, and waits again when one has gone.  Events go to
stdout, everything else to stderr, so that `edge-watch --json > events.jsonl` holds events alone.

With --durable nothing is missed: edge-watch --durable watch.cursor --json >> events.jsonl, killed and started again
as often as you like, makes a log of every event, each once.

Each line of --json is one object with every field of docs/events.md (seq, source, score, threshold,
verdict, regions, ...) and `mask`, the mask as COCO compressed run lengths.

exit codes:
  0  watching has ended: --count, --idle, --until-stopped or Ctrl-C
  1  a mask or overlay cannot be written
  2  wrong arguments, or a folder that cannot be made or found
  4  --images sim:... has a wrong option
  5  the endpoint is invalid
 11  keys that are missing, malformed or open to others
 12  the cursor's file cannot be used
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
    if arguments.control is not None and arguments.durable is None:
        raise UsageError("--control is for --durable", "add --durable FILE")
    with ExitStack() as stack:
        cursor = None
        if arguments.durable is not None:
            cursor = stack.enter_context(LogCursor(arguments.durable, json=arguments.json))
        watch = _Watch(arguments, cursor)
        subscriber: Subscriber | DurableSubscriber = _subscribe(arguments, cursor)
        stack.callback(subscriber.close)
        try:
            watch.run(subscriber)
        except KeyboardInterrupt:
            # The usual way to end watching.
            pass
        finally:
            watch.close(subscriber)
    return 0


def _subscribe(arguments: argparse.Namespace, cursor: LogCursor | None) -> Subscriber | DurableSubscriber:
    keys = client_keys(arguments)
    if cursor is None:
        return Subscriber(arguments.endpoint, camera=arguments.camera, keys=keys)
    return DurableSubscriber(
        arguments.endpoint, control=arguments.control, cursor=cursor, camera=arguments.camera, keys=keys
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
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
    parser.add_argument(
        "--durable",
        type=Path,
        metavar="FILE",
        help="miss nothing: ask the station's journal for what was published before or in between, and keep in FILE "
        "how far we are, to go on from there at the next start",
    )
    parser.add_argument(
        "--control",
        metavar="ENDPOINT",
        help="where the station answers requests, for --durable (default: the next port, or PATH.control)",
    )
    add_client_arguments(parser)
    return parser


def _verdicts(text: str) -> frozenset[Verdict]:
    try:
        return frozenset(Verdict(part.strip().lower()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: use ok, ng, late, fault, separated by commas") from error


class _Gaps:
    """Counts the events that were sent and never arrived, by their sequence numbers within each journal."""

    def __init__(self) -> None:
        self.missing = 0
        self._last: dict[str, int] = {}

    def event(self, journal_id: str, seq: int) -> int:
        """Note that event `seq` is here; return how many before it are missing."""
        return self._see(journal_id, seq - 1, seq)

    def status(self, journal_id: str, last_seq: int) -> int:
        """Note that event `last_seq` has been sent; return how many up to it are missing."""
        return self._see(journal_id, last_seq, last_seq)

    def _see(self, journal_id: str, due: int, last: int) -> int:
        # What a station sent before the first that is heard of it is not missing: nobody was there to miss it.
        known = self._last.get(journal_id, due)
        missing = max(0, due - known)
        self.missing += missing
        self._last[journal_id] = max(known, last)
        return missing


class _Watch:
    """One run of edge-watch: what it shows, saves and counts."""

    def __init__(self, arguments: argparse.Namespace, cursor: LogCursor | None) -> None:
        self._arguments = arguments
        self._cursor = cursor
        self._table = None if arguments.json else output_console()
        self._savers = list(_savers(arguments))
        self._gaps = _Gaps()
        self._verdicts: Counter[Verdict] = Counter()
        self._shown = 0
        self._running: set[str] = set()
        self._states: dict[str, tuple[str, str]] = {}
        self._stopped = False
        self._rejected = 0
        self._unreadable = 0
        self._refusal = ""

    def run(self, subscriber: Subscriber | DurableSubscriber) -> None:
        """Show events until one of the asked-for ends."""
        if self._table is not None:
            self._table.print(Text(_COLUMNS, style="bold"))
        waiting = False
        heard = time.monotonic()
        while True:
            message = subscriber.receive(self._patience(heard))
            if self._cursor is not None:
                self._cursor.commit(now=message is None)
            self._report_rejected(subscriber)
            self._report_refusal(subscriber)
            if message is None and not subscriber.connected and not waiting:
                _note(f"waiting for a station at {subscriber.endpoint}")
            waiting = not subscriber.connected
            if isinstance(message, StatusMessage):
                # Repeated every second: only what is new counts as a sign of life.
                heard = time.monotonic() if self._status(message) else heard
            elif message is not None:
                heard = time.monotonic()
                enough = self._gap(message) if isinstance(message, Gap) else self._event(message)
                self._acknowledge(subscriber, message)
                if enough:
                    return
            behind = isinstance(subscriber, DurableSubscriber) and subscriber.behind
            if self._stopped and not behind:
                return
            if self._arguments.idle is not None and time.monotonic() - heard >= self._arguments.idle:
                return

    def close(self, subscriber: Subscriber | DurableSubscriber) -> None:
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
        """Take a status; return whether it says anything new, as it is repeated every second."""
        status = message.status
        news = self._states.get(status.camera) != (status.boot_id, status.state)
        self._states[status.camera] = (status.boot_id, status.state)
        if self._cursor is None:
            _warn(status.camera, self._gaps.status(numbering(status), status.last_seq), status.last_seq)
        if status.state != "stopped":
            self._running.add(status.camera)
            self._stopped = False
            return news
        self._running.discard(status.camera)
        self._stopped = bool(self._arguments.until_stopped) and not self._running
        return news

    def _gap(self, gap: Gap) -> bool:
        """Tell what cannot be had any more; never a reason to end."""
        if gap.last is not None:
            self._gaps.missing += gap.last - gap.first + 1
        upto = f"event {gap.first} on" if gap.last is None else f"events {gap.first} to {gap.last}"
        console.print(escape(f"{_printable(gap.camera)}: {upto}: {_printable(gap.reason)}"), style="yellow")
        return False

    def _acknowledge(self, subscriber: Subscriber | DurableSubscriber, message: EventMessage | Gap) -> None:
        if isinstance(subscriber, DurableSubscriber) and self._cursor is not None:
            subscriber.ack(message)
            self._cursor.commit()

    def _event(self, message: EventMessage) -> bool:
        event = message.event
        if self._cursor is None:
            _warn(event.camera, self._gaps.event(numbering(event), event.seq), event.seq - 1)
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

    def _report_rejected(self, subscriber: Subscriber | DurableSubscriber) -> None:
        if subscriber.rejected > self._rejected:
            if self._rejected < _SKIPS_SHOWN:
                _note(f"skipped: {_printable(subscriber.last_rejection)}")
            self._rejected = subscriber.rejected

    def _report_refusal(self, subscriber: Subscriber | DurableSubscriber) -> None:
        if subscriber.refusal not in ("", self._refusal):
            console.print(f"[yellow]not let in[/]: {escape(subscriber.refusal)}")
        self._refusal = subscriber.refusal


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
