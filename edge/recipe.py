"""Changing the bundle, or its calibration alone, while the station runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.bundle import Bundle
from edge.errors import EdgeError
from edge.events import requests
from edge.events.control import Control
from edge.events.requests import RequestError, Switch, Switched
from edge.inspection.inspector import Inspector
from edge.station import Station

# How often the file is looked at that may be replaced.
_LOOK_S = 1.0

#: Opens a bundle, having checked all that the station demands of one, such as a signature.
OpenBundle = Callable[[Path], Bundle]
#: Makes an inspector, sharing weights with another where they are the same.
MakeInspector = Callable[[Bundle, "Inspector | None"], Inspector]
Report = Callable[[str], None]


class Recipes:
    """Which bundle each station inspects with; every change is verified first, and takes over between two frames.

    Args:
        open_bundle: opens and checks a bundle.
        make_inspector: makes an inspector of it.
        report: called with messages for people.
    """

    def __init__(self, open_bundle: OpenBundle, make_inspector: MakeInspector, report: Report) -> None:
        self._open_bundle = open_bundle
        self._make_inspector = make_inspector
        self._report = report
        self._lock = threading.Lock()
        self._stations: tuple[Station, ...] = ()
        self._in_use: dict[Inspector, Bundle] = {}

    def load(self, path: Path, count: int) -> list[Inspector]:
        """Return inspectors of one bundle, which score its golden frames as recorded and share its weights.

        Raises:
            BundleError, RuntimeUnavailableError, GoldenError: the bundle cannot be used here.
        """
        bundle = self._open_bundle(path)
        made: list[Inspector] = []
        running = next(iter(self._in_use), None)
        try:
            for _ in range(count):
                made.append(self._make_inspector(bundle, made[0] if made else running))
            made[0].verify_golden()
        except BaseException:
            for inspector in made:
                inspector.close()
            bundle.close()
            raise
        self._in_use.update(dict.fromkeys(made, bundle))
        return made

    def attach(self, stations: Sequence[Station]) -> None:
        """Say which stations inspect with what was loaded."""
        self._stations = tuple(stations)

    def switch(self, path: Path, camera: str = "") -> Switched:
        """Let one station, or all, inspect with another bundle; where anything fails, all go on as they were.

        Raises:
            RequestError: the camera is not known, or the bundle is refused.
        """
        with self._lock:
            stations = [station for station in self._stations if camera in ("", station.name)]
            if not stations:
                raise RequestError(requests.UNKNOWN_CAMERA, f"this station has no camera {camera!r}")
            try:
                made = self.load(path, len(stations))
            except EdgeError as error:
                raise RequestError(requests.REFUSED_BUNDLE, str(error)) from error
            switched: list[tuple[Station, Inspector]] = []
            for station, inspector in zip(stations, made, strict=True):
                before = station.switch(inspector)
                if before is None:
                    self._roll_back(switched)
                    for each in made:
                        self._drop(each)
                    raise RequestError(requests.UNAVAILABLE, f"{station.name} has ended or does not answer")
                switched.append((station, before))
            for _, before in switched:
                self._drop(before)
            now = Switched(made[0].bundle_id, made[0].calibration_id)
        self._report(f"{camera or 'all cameras'}: {path} decides now, bundle {now.bundle_id}")
        return now

    def close(self) -> None:
        """Free all models and bundles."""
        for inspector in list(self._in_use):
            self._drop(inspector)

    def __enter__(self) -> Recipes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _roll_back(self, switched: Sequence[tuple[Station, Inspector]]) -> None:
        for station, before in switched:
            if station.switch(before) is None:
                # It has ended, and inspects no more.
                self._report(f"{station.name} ended while its bundle was changed")

    def _drop(self, inspector: Inspector) -> None:
        """Free a model, and its bundle with the last one of it."""
        bundle = self._in_use.pop(inspector)
        inspector.close()
        if bundle not in self._in_use.values():
            bundle.close()


def serve_recipes(control: Control, recipes: Recipes) -> None:
    """Let a control socket change the bundle."""

    def switch(request: Switch) -> Switched:
        return recipes.switch(Path(request.bundle), request.camera)

    control.register("switch", Switch, switch, slow=True)


class BundleFollower:
    """Takes over a bundle that is put in the place of the one in use, once the file has stopped changing.

    Args:
        path: the file.
        recipes: changes the bundle.
        report: called with why a file was refused.
    """

    def __init__(self, path: Path, recipes: Recipes, report: Report) -> None:
        self._path = path
        self._recipes = recipes
        self._report = report
        self._stop = threading.Event()
        self._known = self._look()
        self._thread = threading.Thread(target=self._run, name="follow-bundle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> BundleFollower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _run(self) -> None:
        last = self._known
        while not self._stop.wait(_LOOK_S):
            now = self._look()
            # Still being copied where it differs from a moment ago; gone where a rename is under way.
            settled, last = now == last, now
            if now is None or now == self._known or not settled:
                continue
            self._known = now
            try:
                self._recipes.switch(self._path)
            except RequestError as error:
                self._report(f"{self._path} is not taken over: {error.problem}")
