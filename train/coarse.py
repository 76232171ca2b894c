"""Coarse anomalies: images known to show a defect somewhere, without any mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edge.cli import console
from edge.errors import DataError
from edge.images import list_images
from edge.manifest import ONE_TILE, CanvasSpec, InputSpec, MapSpec
from train.datasets import Dataset, Sample
from train.prepared import PreparedImages, prepare

#: Instead of a folder: anomalies that the data set itself has in its training split.
SPLIT = "split"

#: How many of all training images are then drawn from them, as in CKAAD's published experiments.
RATIO = 0.05

_NAMES_SHOWN = 5


def coarse_samples(choice: str, dataset: Dataset, seed: int) -> list[Sample]:
    """Return the coarse anomalies that `--coarse` names: all images under a folder, or a draw from the data set's own.

    Raises:
        DataError: there are none, or the folder cannot be read.
    """
    if choice == SPLIT:
        return _drawn(dataset, seed)
    root = Path(choice)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"coarse anomalies: {root} {what}", "--coarse takes a folder of images that show defects")
    try:
        paths = list_images(root, recursive=True)
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror}", "check the folder's permissions") from error
    if not paths:
        raise DataError(f"coarse anomalies: {root} has no images", "put some that show defects there, or leave it out")
    return [Sample(path, 1, "coarse") for path in paths]


def _drawn(dataset: Dataset, seed: int) -> list[Sample]:
    if not dataset.coarse:
        raise DataError(
            f"data set '{dataset.name}' (layout {dataset.layout}) has no anomalies in its training split",
            "give --coarse a folder of images that show defects, or leave it out",
        )
    count = max(1, round(RATIO / (1 - RATIO) * len(dataset.train)))
    chosen = np.random.default_rng([seed, 5]).permutation(len(dataset.coarse))[:count]
    return [dataset.coarse[place] for place in sorted(chosen)]


def load_coarse(
    samples: Sequence[Sample],
    good: PreparedImages,
    input_spec: InputSpec,
    map_spec: MapSpec,
    device: torch.device,
    canvas: CanvasSpec = ONE_TILE,
) -> PreparedImages:
    """Read and prepare coarse anomalies as the `good` images were; unreadable ones are named and left out.

    Of a tiled image every tile counts as one that may show the defect.

    Raises:
        DataError: none can be read, or the pixels of one are those of a good image.
    """
    coarse = prepare(samples, input_spec, map_spec, device, canvas, fewest=1)
    _check_apart(coarse, good)
    count, total = len(coarse.names), len(coarse.names) + len(good.names)
    console.print(f"coarse anomalies: {count} image{'s' if count > 1 else ''}, {count / total:.1%} of all")
    return coarse


def _check_apart(coarse: PreparedImages, good: PreparedImages) -> None:
    known = dict(zip(good.digests, good.names, strict=True))
    both = [
        f"{name} = {known[digest]}" if name != known[digest] else name
        for name, digest in zip(coarse.names, coarse.digests, strict=True)
        if digest in known
    ]
    if both:
        more = f" and {len(both) - _NAMES_SHOWN} more" if len(both) > _NAMES_SHOWN else ""
        raise DataError(
            f"{len(both)} of the coarse anomalies {'are' if len(both) > 1 else 'is'} also among the good images: "
            f"{', '.join(both[:_NAMES_SHOWN])}{more}",
            "an image is either good or shows a defect: take it out of one of the two",
        )
