"""`edge-run`: cameras, a bundle, a publisher."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape

from edge.cli import command, console
from edge.commands.log_arguments import start_logs
from edge.commands.run_arguments import parse
from edge.config import CameraConfig
from edge.errors import CameraError
from edge.manifest import Calibration

if TYPE_CHECKING:
    import argparse

    from edge.bundle import Bundle
    from edge.cameras.base import Camera
    from edge.capture import Triggering
    from edge.commands.run_services import Services
    from edge.events.publisher import Publisher
    from edge.events.schema import Event
    from edge.frames import Slot
    from edge.inspection.inspector import Inspector
    from edge.line import Line
    from edge.recipe import Recipes
    from edge.station import OnEvent, Station

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a station for each camera until all have ended or a signal stops them."""
    args, cameras = parse(argv)
    # Loaded once the arguments are known to be good, so that --help does not wait for them.
    from edge.commands.run_display import show_progress, show_summaries
    from edge.commands.run_services import Services
    from edge.line import Line
    from edge.station import SWITCH_INTERVAL_S

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as stack:
        stack.enter_context(start_logs(args))
        # Put back last: a signal must not cut off the events that still wait to leave when the publisher closes.
        stack.enter_context(_signal_handlers_kept())
        # First of all, so that subscribers that wait connect while the model loads.
        services = stack.enter_context(Services(args, cameras))
        recipes = stack.enter_context(_recipes(args))
        inspectors = recipes.load(args.engine, len(cameras))
        console.print(escape(inspectors[0].describe))
        _tell_golden(inspectors[0])
        opened = [stack.enter_context(_open(camera, patient=len(cameras) > 1)) for camera in cameras]
        with show_progress(_frames(cameras, opened)) as advance:
            actions = (None if args.save is None else _saver(args.save), advance, *services.actions)
            stations = [
                _station(stack, settings, camera, inspector, services, actions)
                for settings, camera, inspector in zip(cameras, opened, inspectors, strict=True)
            ]
            line = Line(stations)
            stack.callback(lambda: show_summaries(stations, args.json))
            recipes.attach(stations)
            services.serve(stations, recipes)
            if args.follow:
                from edge.recipe import BundleFollower

                stack.enter_context(BundleFollower(args.engine, recipes, _warn))
            _stop_on_signals(line)
            services.tell_ready()
            try:
                line.run()
            finally:
                services.tell_stopping()
    return 0


def _recipes(args: argparse.Namespace) -> Recipes:
    from edge.bundle import Bundle
    from edge.inspection.inspector import Inspector
    from edge.recipe import Recipes

    def open_bundle(path: Path) -> Bundle:
        bundle = Bundle.open(path, resident=True)
        if args.require_signed:
            try:
                _require_signature(bundle, args.keys)
            except BaseException:
                bundle.close()
                raise
        return bundle

    def make_inspector(bundle: Bundle, share: Inspector | None) -> Inspector:
        calibration = None if args.threshold is None else _with_threshold(bundle, args.threshold, tell=share is None)
        return Inspector(
            bundle,
            runtime=args.runtime,
            threads=args.threads,
            precision=args.precision,
            calibration=calibration,
            prompt_bytes=None if args.prompt_memory is None else args.prompt_memory << 20,
            share=share,
        )

    return Recipes(open_bundle, make_inspector, lambda message: console.print(escape(message)))


def _station(
    stack: ExitStack,
    settings: CameraConfig,
    camera: Camera,
    inspector: Inspector,
    services: Services,
    actions: Sequence[OnEvent | None],
) -> Station:
    from edge.station import Station

    publisher = services.publishers[settings.name]
    woken: list[Station] = []
    triggering = _triggering(settings, publisher, lambda: woken[0].wake() if woken else None)
    station = Station(
        camera,
        inspector,
        publisher,
        slots=settings.slots,
        count=settings.count,
        frame_timeout_s=settings.frame_timeout,
        reopen=functools.partial(_open_camera, settings),
        triggering=triggering,
        on_event=functools.partial(_each, actions),
        watch=services.watch,
    )
    woken.append(station)
    if triggering is not None and settings.trigger.startswith("gpio:"):
        from edge.triggers.gpio import GpioLine, GpioTrigger

        stack.enter_context(GpioTrigger(GpioLine.parse(settings.trigger), settings.name, triggering.parts))
    return station


def _triggering(settings: CameraConfig, publisher: Publisher, wake: Callable[[], None]) -> Triggering | None:
    if settings.trigger == "none":
        return None
    from edge.capture import Triggering
    from edge.parts import Parts

    parts = Parts(publisher.journal, deadline_ms=settings.deadline_ms, wake=wake)
    return Triggering(parts, settings.trigger == "camera", settings.trigger_window_ms)


def _open_camera(settings: CameraConfig) -> Camera:
    from edge.cameras.open import open_camera

    return open_camera(settings.source, name=settings.name)


def _open(settings: CameraConfig, *, patient: bool) -> Camera:
    """Open a camera; beside others, a device or stream that is not there yet delays nobody and is tried again."""
    from edge.cameras.lost import LostCamera
    from edge.cameras.open import is_live

    try:
        return _open_camera(settings)
    except CameraError as error:
        if not patient or not is_live(settings.source):
            raise
        console.print(f"[yellow]warning[/]: {escape(str(error))}; it is tried again")
        return LostCamera(settings.name, error)


def _frames(cameras: Sequence[CameraConfig], opened: Sequence[Camera]) -> int | None:
    """Return how many frames there will be, None where that is not known."""
    total = 0
    for settings, camera in zip(cameras, opened, strict=True):
        frames = camera.total if settings.count is None else min(settings.count, camera.total or settings.count)
        if frames is None:
            return None
        total += frames
    return total


def _saver(folder: Path) -> OnEvent:
    from edge.commands.run_display import OverlaySaver

    return OverlaySaver(folder)


def _warn(message: str) -> None:
    console.print(f"[yellow]warning[/]: {escape(message)}")


def _require_signature(bundle: Bundle, keys: Path | None) -> None:
    from edge.keys import KeyFolder
    from edge.signing import require_signature

    signer = require_signature(bundle, KeyFolder(keys))
    console.print(f"the bundle is signed by {signer.name}, {signer.text}")


def _with_threshold(bundle: Bundle, threshold: float, *, tell: bool) -> Calibration:
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
    if tell:
        console.print(
            f"[yellow]note[/]: threshold {threshold:.4g} given by hand{was}; no false-reject rate is known for it"
        )
    return rule


def _tell_golden(inspector: Inspector) -> None:
    results = inspector.golden
    if results:
        worst = max(result.error for result in results)
        console.print(f"golden frames: {len(results)} score as recorded, largest difference {worst:.3%}")
    else:
        console.print("[yellow]note[/]: the bundle has no golden frames to check this machine by")


def _each(actions: Sequence[OnEvent | None], event: Event, mask: bytes, slot: Slot | None) -> None:
    for action in actions:
        if action is not None:
            action(event, mask, slot)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put the handlers of the signals that end a station back as they were."""
    before = {number: signal.getsignal(number) for number in _END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_on_signals(line: Line) -> None:
    """Let SIGINT and SIGTERM end the stations in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Finishing is bounded by the frames in the slots: a second signal would only lose their verdicts.
        for each in _END_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        line.stop()

    for number in _END_SIGNALS:
        signal.signal(number, stop)
