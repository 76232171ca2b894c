"""What edge-watch saves: masks, and images with what was found drawn on them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.cameras.sim_camera import open_sim
from edge.errors import EdgeError, FrameError, UsageError
from edge.events.schema import Event
from edge.frames import U8
from edge.images import IMAGE_SUFFIXES, read_image, write_png
from edge.overlay import draw_overlay, over_frame

_MAX_NAME = 100
_MAX_SIDE = 32767


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
        size = _picture_size(event)
        if size is not None and mask.any():
            image = 255 * over_frame(mask, size, event.roi if size == event.frame_size else None)
            _write(self._folder / file_name(event), image)
            self._saved += 1

    def summary(self) -> str:
        """Return how many masks there are, and where."""
        return f"{self._saved} masks in {self._folder}"


class FolderImages:
    """The images of a folder, by their source names."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"--images {folder}: no such folder", "name the folder or sim:… that edge-run inspects")
        self._folder = Path(os.path.realpath(folder))

    def find(self, source: str) -> U8 | None:
        """Return the image `(H, W, 3)`, None where there is none."""
        try:
            path = Path(os.path.realpath(self._folder / source))
            # A source name comes from outside: it must not lead out of the folder.
            if not path.is_relative_to(self._folder) or not path.is_file():
                return None
            return read_image(path)
        except (FrameError, OSError, ValueError):
            return None


class SimulatedImages:
    """The parts of a simulated line, drawn again."""

    def __init__(self, options: str) -> None:
        self._line = open_sim("images", options).line

    def find(self, source: str) -> U8 | None:
        """Return the image `(H, W, 3)`, None where the source is no part of this line."""
        match = re.fullmatch(r"sim/([0-9]{1,19})/([0-9]{1,19})", source)
        if match is None or int(match[1]) != self._line.seed:
            return None
        image = np.empty((self._line.height, self._line.width, 3), np.uint8)
        self._line.render(int(match[2]), image)
        return image


class OverlaySaver:
    """Saves each image with mask, regions and verdict drawn on it.

    Args:
        folder: to save in; made where it is missing.
        images: what edge-run inspects, a folder or `sim:…`; None draws on black.
    """

    def __init__(self, folder: Path, images: str | None) -> None:
        self._images: FolderImages | SimulatedImages | None = None
        if images is not None:
            simulated = images == "sim" or images.startswith("sim:")
            self._images = SimulatedImages(images[4:]) if simulated else FolderImages(Path(images))
        self._folder = _make(folder)
        self._saved = 0
        self._on_black = 0

    def save(self, event: Event, mask: NDArray[np.bool_]) -> None:
        """Save the overlay; on black where the image is not found."""
        image = None if self._images is None else self._images.find(event.source)
        # Regions are in the frame's pixels: an image of another size is not that frame.
        if image is None or image.shape[1::-1] != event.frame_size:
            size = _picture_size(event)
            if size is None:
                return
            image = np.zeros((size[1], size[0], 3), np.uint8)
            self._on_black += 1
        picture = draw_overlay(
            image,
            event.verdict,
            score=event.score,
            threshold=event.threshold,
            mask=mask,
            roi=event.roi if image.shape[1::-1] == event.frame_size else None,
            regions=event.regions,
        )
        _write(self._folder / file_name(event), picture)
        self._saved += 1

    def summary(self) -> str:
        """Return how many overlays there are, where, and how many lack their image."""
        without = f" ({self._on_black} without their image)" if self._on_black else ""
        return f"{self._saved} overlays in {self._folder}{without}"


def file_name(event: Event) -> str:
    """Return a file name that no other event has: boot id, sequence number, source."""
    source = event.source
    stem, dot, suffix = source.rpartition(".")
    if dot + suffix.lower() in IMAGE_SUFFIXES:
        source = stem
    boot, source = (re.sub(r"[^A-Za-z0-9._-]+", "_", text) for text in (event.boot_id, source))
    return f"{boot[:8]}-{event.seq:07d}-{source[-_MAX_NAME:]}.png"


def _picture_size(event: Event) -> tuple[int, int] | None:
    """Return width and height to draw at: the frame's where it had any, within what OpenCV can draw."""
    for size in (event.frame_size, event.mask_size):
        if min(size) > 0 and max(size) <= _MAX_SIDE:
            return size
    return None


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make folder {folder}: {error.strerror or error}", "name another folder") from error
    return folder


def _write(path: Path, image: U8) -> None:
    try:
        write_png(path, image)
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error.strerror or error}", "free space there") from error
