"""Score a test set image by image, and sum it up."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from edge.cli import console
from edge.cli import progress as progress_bar
from edge.errors import DataError
from edge.frames import F32, U8, Area, FrameMeta, PixelFormat
from edge.images import pixel_digest
from edge.inspection.inspector import Inspector
from edge.inspection.result import Verdict
from train.datasets import Dataset, Mask, Sample, load_images, load_mask
from train.metrics import Metrics, compute_metrics, image_auroc


class Scored(NamedTuple):
    """A model's answer for one image: image score, map maximum, anomaly map of the whole image, float32 `(H, W)`."""

    score: float
    peak: float
    anomaly_map: F32


class Scorer(Protocol):
    """Anything that scores one image at a time."""

    def score(self, image: U8) -> Scored:
        """Score an image, BGR uint8 `(H, W, 3)`; the map's memory may be reused by the next call."""
        ...


class BundleScorer:
    """Scores images with the station's own inspector."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._slot = inspector.make_slots(1, 0)[0]

    def score(self, image: U8) -> Scored:
        """Score one BGR image of any size.

        Raises:
            DataError: the inspector finds a fault; its reason is given.
        """
        slot = self._slot
        slot.shape_pixels(image.shape[0], image.shape[1], PixelFormat.BGR8)[:] = image
        slot.meta = FrameMeta()
        inspection = self._inspector.inspect(slot)
        if inspection.verdict is Verdict.FAULT:
            raise DataError(f"a test image cannot be inspected: {inspection.reason}", "take it out of the test set")
        return Scored(inspection.score, inspection.peak, whole_frame(slot.anomaly_map, slot.area))


def whole_frame(anomaly_map: F32, area: Area | None) -> F32:
    """Return the part of a map that the frame covers, all of it or `area`, as large as the map was.

    So that all maps of a test set are of one size, and images of different sizes count alike.
    """
    if area is None or area[2:] == anomaly_map.shape:
        return anomaly_map
    top, left, height, width = area
    return resized_map(anomaly_map[top : top + height, left : left + width], anomaly_map.shape)


def resized_map(anomaly_map: F32, size: tuple[int, ...]) -> F32:
    """Return a map at another `(height, width)`: means where both sides shrink, else interpolated linearly."""
    height, width = size
    shrinks = height <= anomaly_map.shape[0] and width <= anomaly_map.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(anomaly_map, (width, height), interpolation=how), np.float32)


@dataclass(frozen=True)
class Record:
    """One scored image; `name` is its path relative to the data set."""

    path: Path
    name: str
    kind: str
    label: int
    score: float
    peak: float


@dataclass(frozen=True)
class KindMetrics:
    """One defect kind: how many images, their mean score, and how well they rank above the good ones."""

    images: int
    mean_score: float
    image_auroc: float | None


@dataclass(frozen=True)
class Evaluation:
    """A scored test set.  `maps` and `masks` (None: no true mask known) run parallel to `records`.

    `skipped` names the images that could not be read; `seconds_per_image` is the scorer's median time.
    """

    dataset: str
    layout: str
    records: tuple[Record, ...]
    maps: tuple[F32, ...]
    masks: tuple[Mask | None, ...]
    metrics: Metrics
    kinds: dict[str, KindMetrics]
    skipped: tuple[str, ...]
    seconds_per_image: float

    def summary(self) -> dict[str, Any]:
        """Return everything but the single images, ready for JSON."""
        labels = [record.label for record in self.records]
        marked = sum(
            mask is not None and record.label != 0 for record, mask in zip(self.records, self.masks, strict=True)
        )
        return {
            "dataset": self.dataset,
            "layout": self.layout,
            "images": {
                "good": labels.count(0),
                "defect": len(labels) - labels.count(0),
                "defect_with_mask": marked,
                "unreadable": len(self.skipped),
            },
            "metrics": asdict(self.metrics),
            "kinds": {name: asdict(kind) for name, kind in self.kinds.items()},
            "seconds_per_image": self.seconds_per_image,
            "skipped": list(self.skipped),
        }

    def to_json(self) -> str:
        """Return the summary as one line of JSON."""
        return json.dumps(self.summary(), allow_nan=False)


def evaluate(
    scorer: Scorer,
    dataset: Dataset,
    *,
    size: tuple[int, int] | None = None,
    trained: Collection[str] = (),
    progress: bool = True,
) -> Evaluation:
    """Score every test image of `dataset` and compute its metrics, with a progress bar on stderr.

    Maps and masks are compared at `size`, `(height, width)`, or else at the size of the scorer's maps.  Maps are kept
    in float32: a thousand of them at 256² are 260 MB.  Images whose `pixel_digest` is in `trained` are left out and
    counted on the console: what was learnt from, coarse anomalies among it, says nothing of new parts.

    Raises:
        DataError: there is no readable test image to score, a mask does not fit its image, or the model gives NaN or
            infinity.
    """
    if not dataset.test:
        raise DataError(
            f"data set '{dataset.name}' (layout {dataset.layout}) has no test images",
            "evaluation needs labelled images, as in test/good and test/<kind>; see docs/datasets.md",
        )
    records: list[Record] = []
    maps: list[F32] = []
    masks: list[Mask | None] = []
    seconds: list[float] = []
    skipped: list[Path] = []
    known: list[Path] = []
    with progress_bar() as bar:
        task = bar.add_task(f"evaluating {dataset.name}", total=len(dataset.test), note="", visible=progress)
        for sample, image in load_images(dataset.test, skipped=skipped):
            if trained and pixel_digest(image) in trained:
                known.append(sample.path)
                continue
            started = time.perf_counter()
            scored = scorer.score(image)
            seconds.append(time.perf_counter() - started)
            # A copy: the scorer may write its next map into the same memory.
            anomaly_map = np.array(scored.anomaly_map, np.float32)
            if size is not None and size != anomaly_map.shape:
                anomaly_map = resized_map(anomaly_map, size)
            _check_finite(sample, scored, anomaly_map)
            maps.append(anomaly_map)
            masks.append(load_mask(sample, anomaly_map.shape, image_shape=image.shape))
            name = sample.path.relative_to(dataset.root).as_posix()
            records.append(
                Record(sample.path, name, sample.kind, sample.label, float(scored.score), float(scored.peak))
            )
            bar.update(task, completed=len(records) + len(skipped) + len(known))
        bar.update(task, completed=len(dataset.test))
    if known:
        console.print(f"{len(known)} of {len(dataset.test)} test images left out: the model was trained on them")
    if not records:
        raise DataError(
            f"data set '{dataset.name}': the model was trained on every readable test image",
            "evaluate on images that it has not seen",
        )
    labels = [record.label for record in records]
    return Evaluation(
        dataset=dataset.name,
        layout=dataset.layout,
        records=tuple(records),
        maps=tuple(maps),
        masks=tuple(masks),
        metrics=compute_metrics(labels, [record.score for record in records], maps, masks),
        kinds=_by_kind(records),
        skipped=tuple(path.relative_to(dataset.root).as_posix() for path in skipped),
        seconds_per_image=median(seconds),
    )


def _check_finite(sample: Sample, scored: Scored, anomaly_map: F32) -> None:
    if not (math.isfinite(scored.score) and math.isfinite(scored.peak) and np.isfinite(anomaly_map).all()):
        raise DataError(f"the model gives NaN or infinity for {sample.path}", "the model is broken: train again")


def _by_kind(records: Sequence[Record]) -> dict[str, KindMetrics]:
    good = [record.score for record in records if record.label == 0]
    kinds: dict[str, KindMetrics] = {}
    for name in sorted({record.kind for record in records}):
        scores = [record.score for record in records if record.kind == name]
        if all(record.label == 0 for record in records if record.kind == name):
            auroc = None
        else:
            auroc = image_auroc([0] * len(good) + [1] * len(scores), good + scores)
        kinds[name] = KindMetrics(len(scores), fmean(scores), auroc)
    return kinds
