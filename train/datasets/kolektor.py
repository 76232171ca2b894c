"""The KolektorSDD and KolektorSDD2 layouts.  A part is defective when its label image is not all zero.

D. Tabernik et al., "Segmentation-based deep-learning approach for surface-defect detection", Journal of
Intelligent Manufacturing 2020; J. Božič et al., "Mixed supervision for surface-defect detection",
Computers in Industry 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edge.errors import DataError
from edge.images import list_images
from train.datasets.base import ACCEPTED, GOOD, Dataset, Sample, read_mask

_ITEM = re.compile(r"kos\d+", re.IGNORECASE)
_DEFECT = "defect"


def is_kolektorsdd(root: Path) -> bool:
    """Say whether `root` has folders kos01, kos02, … with labelled parts."""
    return any(_labels(path, "_label") for path in _items(root))


def is_kolektorsdd2(root: Path) -> bool:
    """Say whether `root` has `train` or `test` with `NNNNN_GT.png` files right in it."""
    return any((root / split).is_dir() and _labels(root / split, "_GT") for split in ("train", "test"))


def read_kolektorsdd(root: Path) -> Dataset:
    """Return KolektorSDD: the good parts of the first half of the items train, all parts of the others test.

    Items are the folders kos01, kos02, …; the half is rounded up.  The defective parts of the first half are the
    coarse anomalies: no item is seen on both sides.

    Raises:
        DataError: there are no items, a part has no label image, or no good training part is left.
    """
    items = _items(root)
    if not items:
        raise DataError(f"{root} has no folders kos01, kos02, …", ACCEPTED)
    half = (len(items) + 1) // 2
    train, coarse = _split(sample for item in items[:half] for sample in _samples(item, "_label"))
    test = [sample for item in items[half:] for sample in _samples(item, "_label")]
    if not train:
        raise DataError(f"{root} has no good parts in {items[0].name} … {items[half - 1].name}", ACCEPTED)
    return Dataset(root.resolve().name, "kolektorsdd", root, train, tuple(test), coarse)


def read_kolektorsdd2(root: Path) -> Dataset:
    """Return KolektorSDD2 by its published split; the defective images of `train` are the coarse anomalies.

    Raises:
        DataError: a folder is missing, an image has no `_GT` image, or no good training image is left.
    """
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise DataError(f"{root} has no folder {split}", ACCEPTED)
    train, coarse = _split(_samples(root / "train", "_GT"))
    if not train:
        raise DataError(f"{root / 'train'} has no good images", ACCEPTED)
    test = _samples(root / "test", "_GT")
    return Dataset(root.resolve().name, "kolektorsdd2", root, train, tuple(test), coarse)


def _split(samples: Iterable[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the good samples, and the defective ones without their masks."""
    both = list(samples)
    good = tuple(sample for sample in both if sample.label == 0)
    return good, tuple(replace(sample, mask=None) for sample in both if sample.label)


def _items(root: Path) -> list[Path]:
    items = [path for path in root.iterdir() if path.is_dir() and _ITEM.fullmatch(path.name)]
    return sorted(items, key=lambda path: (int(path.name[3:]), path.name))


def _labels(folder: Path, suffix: str) -> dict[str, Path]:
    return {path.stem: path for path in list_images(folder) if path.stem.endswith(suffix)}


def _samples(folder: Path, suffix: str) -> list[Sample]:
    labels = _labels(folder, suffix)
    samples = []
    for path in list_images(folder):
        if path.stem in labels:
            continue
        label = labels.get(path.stem + suffix)
        if label is None:
            raise DataError(f"{path} has no label image {path.stem}{suffix}", "restore it from the archive")
        if read_mask(label).any():
            samples.append(Sample(path, 1, _DEFECT, label))
        else:
            samples.append(Sample(path, 0, GOOD))
    return samples
