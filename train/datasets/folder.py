"""A plain folder of good images, nested or not: all for training, none for testing."""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError
from edge.images import list_images
from train.datasets.base import ACCEPTED, GOOD, Dataset, Sample

_GOOD_NAMES = frozenset({"good", "normal", "ok"})
_SPLIT_NAMES = ("train", "test", "ground_truth")


def read_folder(root: Path) -> Dataset:
    """Return every image under `root` as a good training image.

    Raises:
        DataError: there are none.
    """
    images = list_images(root, recursive=True)
    if not images:
        raise DataError(f"{root} has no images", ACCEPTED)
    return Dataset(root.resolve().name, "folder", root, tuple(Sample(path, 0, GOOD) for path in images))


def check_plain(root: Path) -> None:
    """Refuse a folder whose subfolders say that not all of its images are good training images.

    Raises:
        DataError: it has the split folders of an incomplete layout, or a `good` folder among others.
    """
    folders = {path.name.casefold(): path for path in sorted(root.iterdir()) if path.is_dir()}
    split = [name for name in _SPLIT_NAMES if name in folders]
    if split:
        raise DataError(
            f"{root} has {' and '.join(split)} but no good training images of a known layout",
            f"if all images under it are good, give --layout folder; {ACCEPTED}",
        )
    good = [path for name, path in folders.items() if name in _GOOD_NAMES]
    others = [path.name for name, path in folders.items() if name not in _GOOD_NAMES and list_images(path, True)]
    if good and others:
        raise DataError(
            f"{root} has {good[0].name} beside {', '.join(others)}: not all of its images may be good",
            f"to train, give {good[0]}, or --layout folder if all of them are good; "
            "to evaluate, sort them as docs/datasets.md says",
        )
