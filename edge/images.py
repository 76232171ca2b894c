"""Image files: which ones there are, and how one becomes pixels.  Training and inspection read alike."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from edge.errors import FrameError
from edge.files import atomic_write
from edge.frames import U8

#: Suffixes, lower case, of the files that count as images.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

# OpenCV's own log lines on stderr would stand beside our error, which names the file and says the same.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_DIGITS = re.compile(r"([0-9]+)")


def pixel_digest(image: U8) -> str:
    """Return 32 hex digits that tell images apart by their size and pixels, whatever their files are called."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def read_image(path: Path) -> U8:
    """Read an image file as BGR.

    Grey becomes three equal channels, 16-bit samples are scaled to 8 bits, transparency is dropped, palettes are
    resolved, and the EXIF orientation is obeyed.

    Args:
        path: an image file.

    Returns:
        uint8 array of shape `(height, width, 3)`, C-contiguous.

    Raises:
        FrameError: the file cannot be read, is empty, truncated, or not an image.
    """
    try:
        # Opening a pipe would wait for its writer, and a device never ends.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FrameError(f"cannot read image {path}: not a regular file")
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FrameError(f"cannot read image {path}: {error.strerror or error}") from error
    if data.size == 0:
        raise FrameError(f"cannot read image {path}: the file is empty", "copy it again from its source")
    try:
        # From memory, because `imread` accepts a truncated JPEG and fills the missing part with grey.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise FrameError(f"cannot read image {path}: {str(error.err).strip()}") from error
    if image is None or image.size == 0:
        raise FrameError(
            f"cannot read image {path}: truncated, damaged, or not an image", "copy it again from its source"
        )
    pixels: U8 = image
    return pixels


def write_png(path: Path, image: U8) -> None:
    """Write a grey or BGR image as PNG, wholly or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path, sync=False) as file:
        file.write(cv2.imencode(".png", image)[1].tobytes())


def is_image(path: Path) -> bool:
    """Return whether the name is that of an image; hidden files, such as macOS's `._` companions, are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in natural order: `2.png` before `10.png`.

    Args:
        folder: where to look.
        recursive: also look in sub-folders, except hidden ones and links.

    Raises:
        OSError: the folder cannot be read.
    """
    if not recursive:
        return natural_sorted(path for path in folder.iterdir() if is_image(path) and path.is_file())
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if is_image(Path(name))]
    return natural_sorted(found)


def natural_sorted(paths: Iterable[Path]) -> list[Path]:
    """Return the paths with runs of digits ordered by their value, letters without regard to case."""
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[list[tuple[int, str]]], str]:
    # `split` with a group puts text at the even places and runs of digits at the odd ones, always.
    parts = [
        [(int(text), "") if place % 2 else (0, text) for place, text in enumerate(_DIGITS.split(part.lower()))]
        for part in path.parts
    ]
    return parts, str(path)


def _raise(error: OSError) -> None:
    raise error
