"""What a station inspects: its cameras, from the command line or a TOML file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge.errors import UsageError
from edge.events.publisher import check_camera_name
from edge.frames import MAX_SLOTS, MIN_SLOTS
from edge.triggers.gpio import GpioLine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,64})=(?P<source>.+)", re.DOTALL)
_MAX_FILE_BYTES = 1 << 20

TRIGGERS = ("none", "request", "camera")

Positive = Annotated[float, msgspec.Meta(gt=0)]


class CameraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One camera and when it inspects.

    `source` is as in `edge.cameras.open.open_camera`; `trigger` is `none` (free-running), `request`, `camera` or
    `gpio:CHIP:LINE[:EDGE]`.  `deadline_ms` counts from the trigger; `trigger_window_ms`: see `Triggering`.
    `frame_timeout` is in seconds; `slots` and `count` as of `Station`.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "cam0"
    source: Annotated[str, msgspec.Meta(min_length=1)]
    trigger: str = "none"
    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=3_600_000)] | None = None
    trigger_window_ms: Positive = 1000.0
    frame_timeout: Positive = 5.0
    slots: Annotated[int, msgspec.Meta(ge=MIN_SLOTS, le=MAX_SLOTS)] = 4
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None


def check_trigger(text: str) -> str:
    """Return what may follow `--trigger`.

    Raises:
        UsageError: it is none of the kinds.
    """
    if text in TRIGGERS:
        return text
    if not text.startswith("gpio:"):
        raise UsageError(f"no trigger {text!r}", f"one of {', '.join(TRIGGERS)}, or gpio:CHIP:LINE[:rising|falling]")
    GpioLine.parse(text)
    return text


def cameras_from_arguments(sources: Sequence[str], name: str | None, common: Mapping[str, Any]) -> list[CameraConfig]:
    """Return the cameras that the command line names.

    Args:
        sources: each `SOURCE` or `NAME=SOURCE`.
        name: of the only camera; None for `cam0`, `cam1`, …
        common: what holds for all of them, by `CameraConfig`'s fields.

    Raises:
        UsageError: names clash, or make no sense.
    """
    if name is not None and len(sources) > 1:
        raise UsageError(f"--name {name} for {len(sources)} cameras", "write --camera NAME=SOURCE for each")
    cameras = []
    for number, text in enumerate(sources):
        found = None if os.path.exists(text) else _NAMED.fullmatch(text)
        if found is None:
            cameras.append(CameraConfig(name=name or f"cam{number}", source=text, **common))
        else:
            cameras.append(CameraConfig(name=found["name"], source=found["source"], **common))
    return check_cameras(cameras)


def check_cameras(cameras: list[CameraConfig]) -> list[CameraConfig]:
    """Return cameras whose names differ and whose triggers make sense.

    Raises:
        UsageError: says which does not.
    """
    for camera in cameras:
        check_camera_name(camera.name)
        check_trigger(camera.trigger)
        if camera.deadline_ms is not None and camera.trigger == "none":
            raise UsageError(
                f"camera {camera.name}: a deadline, but no trigger from which it could count",
                "add --trigger request, camera or gpio:…",
            )
    names = [camera.name for camera in cameras]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two cameras are called {name!r}", "give each its own name: --camera NAME=SOURCE")
    return cameras


class StationFile(msgspec.Struct):
    """What a file says: its cameras, and the station's options as they would be written on the command line."""

    cameras: list[CameraConfig]
    words: list[str]


def read_station_file(path: Path, options: Mapping[str, str]) -> StationFile:
    """Return what a TOML file says of a station.

    Its `[[camera]]` tables have the keys of `CameraConfig`; its other keys are `edge-run`'s long options without
    the dashes.

    Args:
        path: the file.
        options: the options that a file may set, each with its kind: `flag` or `value`.

    Raises:
        UsageError: names the file, the key, and what is wrong with it.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB", "name a TOML file")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", "name a TOML file") from error
    # Tables nested without end make the parser recurse without end; a number of thousands of digits is no TOML error.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}", "docs/station.md has an example") from error
    cameras = table.pop("camera", [])
    if not isinstance(cameras, list):
        raise UsageError(f"{path}: camera is not a list of tables", "write [[camera]], with two brackets")
    try:
        found = [msgspec.convert(camera, CameraConfig) for camera in cameras]
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: [[camera]]: {error}", "docs/station.md lists the keys") from error
    return StationFile(check_cameras(found), _words(path, table, options))


def _words(path: Path, table: Mapping[str, Any], options: Mapping[str, str]) -> list[str]:
    words = []
    for key, value in table.items():
        kind = options.get(key)
        if kind is None:
            raise UsageError(f"{path}: no option {key!r}", f"known: {', '.join(sorted(options))}, [[camera]]")
        if kind == "flag":
            if not isinstance(value, bool):
                raise UsageError(f"{path}: {key} = {value!r}", "write true or false")
            words += [f"--{key}"] if value else []
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UsageError(f"{path}: {key} = {value!r}", "a text or a number is needed")
        else:
            # With "=", so that a value may begin with a dash.
            words.append(f"--{key}={value}")
    return words
