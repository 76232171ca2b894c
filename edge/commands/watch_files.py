"""What edge-watch saves: masks, and images with what was found drawn on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError, FrameError, UsageError
from edge.events.schema import Event
from edge.frames import U8
from edge.images import IMAGE_SUFFIXES, read_image
from edge.overlay import draw_overlay

_MAX_NAME = 100


class Saver(Protocol):
    """Saves something of each event."""

    def save(self, event: Event, mask: NDArray[np.bool_]) -> None:
        """Save what there is to save.

        Args:
            event: as received.
            mask: `(height, width)` of its `mask_size`.

        Raises:
            EdgeError: the file cannot be written.
        """

    def summary(self) -> str:
        """Return what has been saved, in a few words."""


class MaskSaver:
    """Saves each mask that is not empty as a grey PNG of the frame's size, 255 where marked."""

    def __init__(self, folder: Path) -> None:
        self._folder = _make(folder)
        self._saved = 0

    def save(self, event: Event, mask: NDArray[np.bool_]) -> None:
        """Save the mask."""
        if mask.any():
            image = mask.astype(np.uint8) * np.uint8(255)
            if all(event.frame_size):
                image = cv2.resize(image, event.frame_size, interpolation=cv2.INTER_NEAREST)
            _write(self._folder / file_name(event), image)
            self._saved += 1

    def summary(self) -> str:
        """Return how many masks there are, and where."""
        return f"{self._saved} masks in {self._folder}"


class OverlaySaver:
    """Saves each image with mask, regions and verdict drawn on it.

    Args:
        folder: to save in; made where it is missing.
        images: folder in which the events' source names are found; None draws on black.
    """

    def __init__(self, folder: Path, images: Path | None) -> None:
        if images is not None and not images.is_dir():
            raise UsageError(f"--images {images} is not a folder", "name the folder that edge-run reads")
        self._folder = _make(folder)
        self._images = images
        self._saved = 0
        self._on_black = 0

    def save(self, event: Event, mask: NDArray[np.bool_]) -> None:
        """Save the overlay; on black where the image is not found."""
        image = self._find(event)
        if image is None:
            width, height = event.frame_size if all(event.frame_size) else event.mask_size
            if not width or not height:
                return
            image = np.zeros((height, width, 3), np.uint8)
            self._on_black += 1
        picture = draw_overlay(
            image, event.verdict, score=event.score, threshold=event.threshold, mask=mask, regions=event.regions
        )
        _write(self._folder / file_name(event), picture)
        self._saved += 1

    def summary(self) -> str:
        """Return how many overlays there are, where, and how many lack their image."""
        without = f" ({self._on_black} without their image)" if self._on_black else ""
        return f"{self._saved} overlays in {self._folder}{without}"

    def _find(self, event: Event) -> U8 | None:
        """Return the event's image if it is in the folder, as large as the event says."""
        if self._images is None:
            return None
        try:
            path = (self._images / event.source).resolve()
            # A source name comes from outside: it must not lead out of the folder.
            if not path.is_relative_to(self._images.resolve()) or not path.is_file():
                return None
            image = read_image(path)
        except (FrameError, OSError, ValueError):
            return None
        return image if image.shape[1::-1] == event.frame_size else None


def file_name(event: Event) -> str:
    """Return a file name that no other event has: boot id, sequence number, source."""
    source = event.source
    stem, dot, suffix = source.rpartition(".")
    if dot + suffix.lower() in IMAGE_SUFFIXES:
        source = stem
    boot, source = (re.sub(r"[^A-Za-z0-9._-]+", "_", text) for text in (event.boot_id, source))
    return f"{boot[:8]}-{event.seq:07d}-{source[-_MAX_NAME:]}.png"


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make folder {folder}: {error.strerror or error}", "name another folder") from error
    return folder


def _write(path: Path, image: U8) -> None:
    data = cv2.imencode(".png", image)[1].tobytes()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error.strerror or error}", "free space there") from error
