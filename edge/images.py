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
from edge.frames import U8, PixelFormat, Roi
from edge.manifest import Lens

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


#: OpenCV names a mosaic by the four pixels one row and one column further.
_TO_BGR = {
    PixelFormat.RGB8: cv2.COLOR_RGB2BGR,
    PixelFormat.NV12: cv2.COLOR_YUV2BGR_NV12,
    PixelFormat.BAYER_RGGB: cv2.COLOR_BayerBG2BGR,
    PixelFormat.BAYER_BGGR: cv2.COLOR_BayerRG2BGR,
    PixelFormat.BAYER_GRBG: cv2.COLOR_BayerGB2BGR,
    PixelFormat.BAYER_GBRG: cv2.COLOR_BayerGR2BGR,
}


def to_bgr(pixels: U8, pixel_format: PixelFormat) -> U8:
    """Return a frame as people and image files want it: `(height, width, 3)` BGR, or `(height, width)` grey.

    `pixels` are of the format's shape.  What is BGR or grey already is returned as it is.
    """
    code = _TO_BGR.get(pixel_format)
    if code is None:
        return pixels
    if pixel_format.bayer and min(pixels.shape) < 3:
        # OpenCV leaves such mosaics black.
        pixels = cv2.copyMakeBorder(pixels, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
        return np.asarray(cv2.cvtColor(pixels, code)[2:-2, 2:-2], np.uint8)
    return np.asarray(cv2.cvtColor(pixels, code), np.uint8)


def straightened(image: U8, lens: Lens | None) -> U8:
    """Return a BGR or grey picture as it would be without the lens's distortion; see `edge.manifest.Lens`."""
    if lens is None:
        return image
    camera = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    terms = np.array([lens.k1, lens.k2, lens.p1, lens.p2, lens.k3])
    size = image.shape[1::-1]
    x, y = cv2.initUndistortRectifyMap(camera, terms, np.eye(3), camera, size, cv2.CV_32FC1)
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def thinned(pixels: U8, pixel_format: PixelFormat, side: int) -> U8:
    """Return a copy of a frame, in the same format and of at most `side` pixels: rows and columns are left out.

    That is quicker than to copy all of it.
    """
    height, width = pixel_format.size(pixels.shape)
    scale = side / max(height, width)
    if scale >= 1:
        return np.array(pixels)
    if pixel_format is not PixelFormat.NV12 and not pixel_format.bayer:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    # Whole blocks of 2 x 2 pixels, so that every sample keeps its colour.
    high, wide = height // 2, width // 2
    rows, columns = (np.arange(n) * of // n for of in (high, wide) for n in (max(1, int(of * scale)),))
    blocks = pixels[: 2 * high, : 2 * wide].reshape(high, 2, wide, 2)[rows][:, :, columns]
    luma = blocks.reshape(2 * len(rows), 2 * len(columns))
    if pixel_format.bayer:
        return np.asarray(luma, np.uint8)
    chroma = pixels[height:].reshape(high, wide, 2)[rows][:, columns]
    return np.asarray(np.concatenate((luma, chroma.reshape(len(rows), -1))), np.uint8)


def samples(pixels: U8, pixel_format: PixelFormat, roi: Roi) -> list[U8]:
    """Return views of a part of a frame, one for each kind of samples, such as red; the first is of the brightness."""
    x, y, width, height = roi
    if pixel_format is PixelFormat.NV12:
        luma = pixel_format.size(pixels.shape)[0]
        chroma = pixels[luma + y // 2 : luma + (y + height + 1) // 2, x // 2 * 2 : (x + width + 1) // 2 * 2]
        return [pixels[y : y + height, x : x + width], chroma[:, ::2], chroma[:, 1::2]]
    part = pixels[y : y + height, x : x + width]
    if pixel_format.bayer:
        return [site for at in range(4) if (site := part[at // 2 :: 2, at % 2 :: 2]).size]
    return [part] if part.ndim == 2 else [part[..., channel] for channel in range(part.shape[2])]


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
