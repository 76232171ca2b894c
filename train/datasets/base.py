"""What a data set is to a trainer: samples in a fixed order, their images and their true masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.cli import console
from edge.errors import DataError, FrameError
from edge.frames import U8
from edge.images import read_image

Mask = NDArray[np.bool_]

GOOD = "good"

#: The next step wherever a folder fits no layout.
ACCEPTED = (
    "accepted: MVTec AD (train/good, test/<kind>, ground_truth/<kind>), a plain folder of good images, "
    "VisA (split_csv/1cls.csv), KolektorSDD (kos01/Part0.jpg, …), KolektorSDD2 (train and test with "
    "NNNNN_GT.png), ISIC2018, Br35H, OCT2017, chest X-ray; see docs/datasets.md"
)

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """One image: its file, its label (0 good, 1 defect), its kind (`good` or the defect's name), its mask.

    `mask` is the file of the true mask; None for a good image, and for a defect with an image label only.
    """

    path: Path
    label: int
    kind: str
    mask: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """Good training images and labelled test images, each in a fixed order; paths lie under `root`.

    `coarse` are the anomalies of the training split, by image label only: for methods that learn from a few of them.
    """

    name: str
    layout: str
    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    coarse: tuple[Sample, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 (hex) over the sorted relative path, size and SHA-256 of every training image.

        Raises:
            DataError: a training image cannot be opened.
        """
        lines = []
        for sample in self.train:
            try:
                content = sample.path.read_bytes()
            except OSError as error:
                raise DataError(f"{sample.path}: {error.strerror}", "check the file and its permissions") from error
            relative = sample.path.relative_to(self.root).as_posix()
            lines.append(f"{relative}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}\n")
        # surrogateescape: a file name that is no valid UTF-8 is still a file name.
        return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def load_images(samples: Sequence[Sample], *, skipped: list[Path] | None = None) -> Iterator[tuple[Sample, U8]]:
    """Yield each sample with its image, BGR uint8 `(H, W, 3)`, leaving out those that cannot be read.

    What was left out is named and counted on the console at the end, and appended to `skipped` as it is met.

    Raises:
        DataError: there are samples, and none of them can be read.
    """
    missing: list[Path] = []
    reason = ""
    for sample in samples:
        try:
            image = read_image(sample.path)
        except FrameError as error:
            reason = reason or error.problem
            missing.append(sample.path)
            if skipped is not None:
                skipped.append(sample.path)
            continue
        yield sample, image
    if missing and len(missing) == len(samples):
        raise DataError(
            f"none of the {len(missing)} images can be read; the first: {reason}",
            "check that the files are whole and are images",
        )
    if missing:
        names = ", ".join(path.name for path in missing[:_NAMES_SHOWN])
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        noun = "image" if len(missing) == 1 else "images"
        console.print(f"{len(missing)} {noun} could not be read: {names}{more}", style="yellow", markup=False)


def read_mask(path: Path) -> Mask:
    """Return a mask file as bool `(H, W)` at its own size: any non-zero grey or colour sample is a defect.

    Transparency is not looked at.

    Raises:
        DataError: the file cannot be read as an image, or is a JPEG, whose zeros are not reliable.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"mask {path}: {error.strerror}", "restore the file or remove the mask folder") from error
    if bytes(content[:3]) == b"\xff\xd8\xff":
        raise DataError(f"mask {path} is a JPEG, whose zeros are not reliable", "save masks as PNG or BMP")
    try:
        pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"mask {path} cannot be read as an image", "restore the file or remove it")
    if pixels.ndim == 3:
        # OpenCV gives grey with alpha as four channels too: the first three are all that can mark a defect.
        pixels = pixels[:, :, :3].any(axis=2)
    return np.asarray(pixels != 0)


def load_mask(sample: Sample, size: tuple[int, int], *, image_shape: tuple[int, ...] | None = None) -> Mask | None:
    """Return the sample's true mask as bool, resized (nearest, by pixel centres) to `(height, width)`.

    A good sample has an all-False mask; a defect without a mask file has None.  Give the image's `(H, W, …)`
    as `image_shape` to have the two compared: a mask of another size must have the same aspect.

    Raises:
        DataError: the mask cannot be read, or does not belong to an image of this shape.
    """
    if sample.label == 0:
        return np.zeros(size, np.bool_)
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask)
    if image_shape is not None:
        _check_aspect(sample, mask.shape, image_shape)
    if mask.shape == size:
        return mask
    height, width = size
    resized = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized != 0)


def _check_aspect(sample: Sample, mask_shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    height, width = image_shape[:2]
    mask_height, mask_width = mask_shape
    # Half a pixel of rounding on each side of the smaller one.
    if abs(mask_height * width - mask_width * height) > max(height, width):
        raise DataError(
            f"mask {sample.mask} is {mask_width}×{mask_height}, its image {sample.path} is {width}×{height}",
            "a mask must have its image's aspect, as the image is shown (after EXIF rotation)",
        )
