"""The images of one comparison: the data set as it is, or with a few defect images of the test set marked instead."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from edge.errors import UsageError
from train.datasets import Dataset, Sample, open_dataset

T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """What every method of a comparison is given.

    `coarse` is a folder of the marked defect images, None where nothing is marked; they are not in `dataset.test`.
    `label` says what was marked, for people.
    """

    dataset: Dataset
    root: Path
    label: str = ""
    coarse: Path | None = None


def whole(root: Path) -> Split:
    """Return the data set as it is.

    Raises:
        UsageError: it has no test images.
    """
    dataset = open_dataset(root)
    if not dataset.test:
        raise UsageError(f"{root} has no test images", "give a data set with test/good and test/<kind>")
    return Split(dataset, root)


def marked(root: Path, kind: str, count: int, folder: Path) -> Split:
    """Take `count` images of a defect kind, spread evenly over their names, out of the test set; MVTec AD layout alone.

    Of several kinds, with commas between, about equally many each.  The images are linked into `folder`, which is made
    anew.

    Raises:
        UsageError: another layout, or there are too few such images.
    """
    dataset = open_dataset(root)
    if dataset.layout != "mvtec":
        raise UsageError(f"{root} has the layout {dataset.layout}", "--coarse needs the MVTec AD layout")
    kinds = kind.split(",")
    chosen: set[Sample] = set()
    for place, one in enumerate(kinds):
        candidates = [sample for sample in dataset.test if sample.kind == one]
        share = count * (place + 1) // len(kinds) - count * place // len(kinds)
        if not 1 <= share < len(candidates):
            known = sorted({sample.kind for sample in dataset.test if sample.label})
            raise UsageError(
                f"{root} has {len(candidates)} test images of '{one}': {share} of them cannot be marked",
                f"its kinds are {', '.join(known)}; mark at least one, and leave at least one in the test set",
            )
        chosen.update(spread(candidates, share))
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / dataset.name
    for sample in dataset.train:
        link(sample.path, data / "train" / "good")
    for sample in dataset.test:
        if sample in chosen:
            link(sample.path, folder / "coarse" / sample.kind)
            continue
        link(sample.path, data / "test" / sample.kind)
        _link_mask(sample, data / "ground_truth" / sample.kind)
    label = f"{count} {' and '.join(kinds)} images marked and not tested"
    return Split(open_dataset(data), data, label, folder / "coarse")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return this many of the items, evenly spread, the first and the last among them where there are two."""
    return [items[place] for place in np.linspace(0, len(items) - 1, count).round().astype(int)]


def link(path: Path, folder: Path) -> None:
    """Link to an image from a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / path.name).symlink_to(path.resolve())


def _link_mask(sample: Sample, folder: Path) -> None:
    if sample.mask is not None:
        link(sample.mask, folder)
