"""What surrounds the stations of `edge-run`: sockets, journals, archive, previews, supervision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from rich.markup import escape

from edge.cli import console
from edge.commands.archive_arguments import open_archive
from edge.commands.journal_arguments import open_journal
from edge.commands.key_arguments import server_keys
from edge.commands.preview_arguments import open_preview
from edge.commands.supervision_arguments import open_health
from edge.config import CameraConfig
from edge.events.control import Control, control_endpoint
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.recipe import Recipes, serve_recipes
from edge.station import OnEvent, Station
from edge.supervision.notify import Notifier
from edge.supervision.pulse import Change, Pulse, Watchdog
from edge.supervision.report import ArchiveReport, CameraReport, JournalReport, StationReport
from edge.triggers.request import serve_triggers

if TYPE_CHECKING:
    import argparse

    from edge.events.schema import Event
    from edge.events.security import Gatekeeper, ServerKeys
    from edge.frames import Slot

# After so many, attempts to connect without a valid key are only counted.
_REFUSALS_SHOWN = 5
# Silence of a thread that verdicts depend on: many times the longest inspection, and the slowest disk.
_ALLOWED_S = 15.0
# Silence of one that only writes or sends pictures.
_ALLOWED_BESIDE_S = 60.0


class Services:
    """Opened before the model loads, so that who waits for the station can connect; closed after the stations.

    Args:
        args: of `edge-run`.
        cameras: what the stations will inspect.

    Raises:
        PublishError: an endpoint cannot be used.
        KeysError: the keys cannot be used.
        JournalError: a journal's folder cannot be used.
    """

    def __init__(self, args: argparse.Namespace, cameras: Sequence[CameraConfig]) -> None:
        self._stack = ExitStack()
        self._stations: Sequence[Station] = ()
        self._requested = [camera.name for camera in cameras if camera.trigger == "request"]
        self.notifier = Notifier()
        period_s = self.notifier.watchdog_period_s or 1.0
        self._watchdog = Watchdog(on_change=self._tell_change, on_look=self.notifier.tick, period_s=period_s)
        try:
            self._open(args, cameras)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, args: argparse.Namespace, cameras: Sequence[CameraConfig]) -> None:
        enter = self._stack.enter_context
        names = [camera.name for camera in cameras]
        enter(self._watchdog)
        keys = None if args.publish == "none" else server_keys(args)
        self._outlet, self._control = self._open_sockets(args, keys)
        self.publishers = {name: self._open_publisher(args, name) for name in names}
        health = open_health(args, self.report)
        if health is not None:
            self._stack.callback(health.close)
            console.print(f"health at http://{escape(health.address)}/health and /metrics")
        pulse = None if args.archive is None else self._watch_beside("archive")
        self._archive = open_archive(args, pulse)
        if self._archive is not None:
            self._stack.callback(self._archive.close)
        pulse = None if args.preview == "none" else self._watch_beside("preview")
        context = None if self._outlet is None else self._outlet.context
        self._preview = open_preview(args, names, events=args.publish, context=context, keys=keys, pulse=pulse)
        if self._preview is not None:
            self._stack.callback(self._preview.close)

    def _open_sockets(self, args: argparse.Namespace, keys: ServerKeys | None) -> tuple[Outlet | None, Control | None]:
        """Open the endpoint for events, and the next one for requests, such as for events that were missed."""
        if args.publish == "none":
            return None, None
        outlet = self._stack.enter_context(
            Outlet(args.publish, keys=keys, insecure=args.insecure, pulse=self.watch("outlet"))
        )
        _report_refusals(self._stack, outlet.gatekeeper)
        control = self._stack.enter_context(
            Control(
                control_endpoint(args.publish),
                context=outlet.context,
                keys=keys,
                insecure=args.insecure,
                pulse=self.watch("control"),
            )
        )
        return outlet, control

    def _open_publisher(self, args: argparse.Namespace, camera: str) -> Publisher:
        journal = None
        if args.journal != "none" and (self._outlet is not None or args.journal is not None):
            journal = open_journal(args, camera, self._watch_beside(f"{camera} journal"))
        if journal is not None:
            self._stack.enter_context(journal)
        publisher = self._stack.enter_context(Publisher(self._outlet, camera=camera, journal=journal))
        publisher.status("starting", {})
        return publisher

    @property
    def actions(self) -> Sequence[OnEvent]:
        """What is done with each published event."""
        return [action for action, wanted in ((self._keep, self._archive), (self._show, self._preview)) if wanted]

    def watch(self, thread: str) -> Pulse:
        """Return the sign of life of a thread on which verdicts depend."""
        return self._watchdog.watch(thread, allowed_s=_ALLOWED_S)

    def _watch_beside(self, thread: str) -> Pulse:
        return self._watchdog.watch(thread, allowed_s=_ALLOWED_BESIDE_S, critical=False)

    def _counters(self, camera: str) -> dict[str, int]:
        """Return what a camera's statuses tell beside the station's own counts."""
        counters = {"stalled": len(self._watchdog.stalled())}
        return counters if self._archive is None else {**counters, **self._archive.counters(camera)}

    def serve(self, stations: Sequence[Station], recipes: Recipes) -> None:
        """Begin to answer requests."""
        self._stations = stations
        for name, publisher in self.publishers.items():
            publisher.more_counters = partial(self._counters, name)
        if self._control is not None:
            serve_events(self._control, list(self.publishers.values()))
            serve_recipes(self._control, recipes)
            parts = {each.name: each.parts for each in stations if each.parts is not None}
            # A camera with its own trigger, or a GPIO line's, takes no others'.
            serve_triggers(self._control, {name: parts[name] for name in self._requested})
            self._control.start()

    def tell_ready(self) -> None:
        """Say, to people and to systemd, that the stations begin."""
        names = ", ".join(self.publishers)
        if self._outlet is not None:
            self._outlet.settle()
            console.print(f"publishing {escape(names)} on {escape(self._outlet.endpoint)}")
        for publisher in self.publishers.values():
            if publisher.journal is not None:
                console.print(escape(f"events are kept in {publisher.journal.folder}"))
        self.notifier.ready(f"inspecting {names}")

    def tell_stopping(self) -> None:
        """Say to systemd that the end has begun."""
        self.notifier.stopping()

    def report(self) -> StationReport:
        """Return what health and metrics are made of."""
        archive = self._archive if self._stations else None
        return StationReport(
            cameras=[self._report_camera(station) for station in self._stations],
            threads=self._watchdog.threads(),
            stalled=self._watchdog.stalled(critical=True),
            archive=None
            if archive is None
            else ArchiveReport(archive.state.value, archive.size_bytes, archive.budget_bytes, archive.problem),
            # Cameras of one model share its cache, and tell the same of it.
            caches={
                f"{station.name} {name}": cache
                for station in self._stations
                for name, cache in station.inspector.caches.items()
            },
            refused=0 if self._outlet is None or self._outlet.gatekeeper is None else self._outlet.gatekeeper.refused,
        )

    def close(self) -> None:
        """Close all."""
        self._stack.close()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _report_camera(self, station: Station) -> CameraReport:
        journal = self.publishers[station.name].journal
        archived = {} if self._archive is None else self._archive.counters(station.name)
        return CameraReport(
            station.name,
            station.state,
            verdicts=dict(station.summary.verdicts),
            skipped=station.skipped,
            timeouts=station.summary.timeouts,
            reconnects=station.summary.reconnects,
            latencies=station.summary.latencies,
            queues=station.queue_depths,
            silent_s=station.silent_s,
            journal=None
            if journal is None
            else JournalReport(
                journal.state.value, journal.size_bytes, journal.first_seq, journal.last_seq, journal.waiting
            ),
            archived=archived.get("archived", 0),
            archive_dropped=archived.get("archive_dropped", 0),
            bundle_id=station.inspector.bundle_id,
            calibration_id=station.inspector.calibration_id,
            problems=[station.blind] if station.blind else [],
        )

    def _keep(self, event: Event, mask: bytes, slot: Slot | None) -> None:
        if self._archive is not None and slot is not None:
            self._archive.offer(slot, event, mask)

    def _show(self, event: Event, mask: bytes, slot: Slot | None) -> None:
        if self._preview is not None and slot is not None:
            self._preview.offer(slot, event)

    def _tell_change(self, change: Change) -> None:
        console.print(f"[yellow]warning[/]: {escape(change.describe)}")
        self.notifier.status(change.describe)


def _report_refusals(stack: ExitStack, gatekeeper: Gatekeeper | None) -> None:
    """Show the first clients that are not let in as it happens, and how many there were in the end."""
    if gatekeeper is None:
        return

    def report(reason: str) -> None:
        if gatekeeper.refused <= _REFUSALS_SHOWN:
            console.print(f"[yellow]refused[/]: {escape(reason)}")

    def total() -> None:
        if gatekeeper.refused:
            console.print(f"[yellow]refused[/]: {gatekeeper.refused} attempts to connect in all")

    gatekeeper.report = report
    stack.callback(total)
