"""Score a folder of good images through the very inspector that the station uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.threshold import pixel_tail
from edge.bundle import Bundle
from edge.errors import CalibrationError, DataError, FrameError
from edge.frames import FrameMeta, PixelFormat
from edge.images import list_images, pixel_digest, read_image
from edge.inspection.corrections import NOTHING, Corrections


@dataclass
class GoodScores:
    """What the good images say.

    Attributes:
        pixels: of an anomaly map that the frame covers, the mean over the images.
        paths: of the distinct images that were scored.
        scores: their image scores.
        tails: the highest values of their anomaly maps (`calib.threshold.pixel_tail`).
        skipped: unreadable images and why.
        trained: images that the model was trained on: it scores them too low to say anything of new parts.
        duplicates: images with the same pixels as an earlier one, with that one.
    """

    pixels: float
    paths: list[Path] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    tails: list[NDArray[np.float32]] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    trained: list[Path] = field(default_factory=list)
    duplicates: list[tuple[Path, Path]] = field(default_factory=list)


def good_images(folder: Path) -> list[Path]:
    """Return the image files of `folder`.  Raises `DataError` where it has none or cannot be read."""
    try:
        paths = list_images(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}", "name a folder of images") from error
    if not paths:
        raise DataError(f"{folder}: no image in this folder", "name the folder that holds the good images itself")
    return paths


def score_images(
    bundle: Bundle, paths: Sequence[Path] | Iterable[Path], pixel_rate: float, corrections: Corrections = NOTHING
) -> GoodScores:
    """Score each distinct image of `paths`, whole frames, that the model was not trained on.

    They go through the `corrections`, as a station's frames will.

    An unreadable image is skipped and listed.  Images with equal pixels count once: a copy says nothing new of how
    good parts scatter, and would fake the number that the stated confidence rests on.

    Raises:
        CalibrationError: an image has no finite score; named.
    """
    from edge.inspection.inspector import Inspector

    good = GoodScores(pixels=0)
    seen: dict[str, Path] = {}
    with Inspector(bundle, uncalibrated=True, corrections=corrections) as inspector:
        slot = inspector.make_slots(1, 0)[0]
        for path in paths:
            try:
                image = read_image(path)
            except FrameError as error:
                good.skipped.append((path, error.problem))
                continue
            digest = pixel_digest(image)
            if digest in bundle.trained:
                good.trained.append(path)
                continue
            original = seen.setdefault(digest, path)
            if original is not path:
                good.duplicates.append((path, original))
                continue
            slot.shape_pixels(image.shape[0], image.shape[1], PixelFormat.BGR8)[:] = image
            slot.meta = FrameMeta(source=str(path))
            inspection = inspector.inspect(slot)
            if not math.isfinite(inspection.score):
                reason = inspection.reason or f"its score is {inspection.score}"
                raise CalibrationError(
                    f"{path}: this good image cannot be scored: {reason}", "take it out of the folder"
                )
            good.paths.append(path)
            good.scores.append(inspection.score)
            good.tails.append(pixel_tail(slot.frame_map, pixel_rate))
            good.pixels += (slot.frame_map.size - good.pixels) / len(good.tails)
    return good
