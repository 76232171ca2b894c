"""Cameras that read image files: one, a folder, a glob.  No frame is lost, however slow the inspection."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from edge.cameras.base import Camera, EndOfStream, place
from edge.errors import CameraError, FrameError
from edge.frames import Slot
from edge.images import IMAGE_SUFFIXES, is_image, list_images, natural_sorted, read_image

_WILDCARD = re.compile(r"[*?\[]")


class FileCamera(Camera):
    """Delivers image files in the given order; one that cannot be read is a frame in error, and the next follows.

    Args:
        name: the camera's name.
        files: the image files.
        base: the folder to which the frames' source names are relative.
    """

    def __init__(self, name: str, files: Sequence[Path], base: Path) -> None:
        super().__init__(name, live=False, total=len(files))
        self._files = files
        self._base = base

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Read the next file into the slot; `timeout_s` does not matter, a file is always there."""
        if self._frames == len(self._files):
            raise EndOfStream
        file = self._files[self._frames]
        source = file.relative_to(self._base).as_posix()
        started_ns = time.monotonic_ns()
        try:
            place(slot, read_image(file))
        except FrameError as error:
            self._stamp(slot, source, started_ns, error=error.problem)
        else:
            self._stamp(slot, source, started_ns)
        return True


def open_image(name: str, file: Path) -> FileCamera:
    """Return a camera that delivers one image file."""
    return FileCamera(name, [file], file.parent)


def open_folder(name: str, folder: Path) -> FileCamera:
    """Return a camera that delivers a folder's images, those of its sub-folders included, in natural order.

    Raises:
        CameraError: the folder cannot be read or holds no image.
    """
    try:
        files = list_images(folder, recursive=True)
    except OSError as error:
        raise CameraError(
            f"cannot read folder {error.filename or folder}: {error.strerror or error}",
            "give this user the right to read it",
        ) from error
    if not files:
        raise CameraError(f"folder {folder} holds no images", f"images end in {_suffixes()}")
    return FileCamera(name, files, folder)


def is_glob(spec: str) -> bool:
    """Return whether the text has a wildcard in it."""
    return _WILDCARD.search(spec) is not None


def open_glob(name: str, pattern: str) -> FileCamera:
    """Return a camera that delivers the images that match a pattern, in natural order; `**` is any depth of folders.

    Raises:
        CameraError: no image matches.
    """
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if is_glob(part))
    base, wild = Path(*parts[:fixed]), list(parts[fixed:])
    if wild[-1] == "**":
        wild.append("*")
    try:
        # Unlike the module `glob`, `Path.glob` follows no link at `**`: one that leads back up would never end.
        found = [path for path in base.glob("/".join(wild)) if is_image(path) and path.is_file()]
    except (OSError, ValueError) as error:
        hint = "write ** between slashes, as in 'parts/**/*.png'"
        raise CameraError(f"cannot search for {pattern}: {error}", hint) from error
    files = natural_sorted(path for path in found if not _is_hidden(path.relative_to(base)))
    if not files:
        raise CameraError(f"no image matches {pattern}", f"images end in {_suffixes()}")
    return FileCamera(name, files, base)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
