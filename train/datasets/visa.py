"""The VisA layout: `<category>/Data/Images/…` with the split in `split_csv/1cls.csv`.

Y. Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation",
ECCV 2022.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from edge.errors import DataError
from train.datasets.base import GOOD, Dataset, Sample

_SPLIT = Path("split_csv") / "1cls.csv"
_COLUMNS = ("object", "split", "label", "image", "mask")


def visa_root(path: Path) -> tuple[Path, str | None] | None:
    """Return the VisA root and, where `path` is one of its category folders, the category; else None."""
    if (path / _SPLIT).is_file():
        return path, None
    absolute = path.resolve()
    if (absolute / "Data").is_dir() and (absolute.parent / _SPLIT).is_file():
        return absolute.parent, absolute.name
    return None


def read_visa(root: Path, category: str | None = None) -> Dataset:
    """Return one category by the one-class split: good images for training, the rest for testing.

    Anomalous images that a split file puts into `train` are left out: training takes good images only.

    Raises:
        DataError: the split file is missing or malformed, the category is missing or not given, or a listed
            file is not there.
    """
    rows = _rows(root)
    names = sorted({row["object"] for row in rows})
    if category is None:
        if len(names) != 1:
            raise DataError(f"{root} has several categories: {', '.join(names)}", "name one of them as the category")
        category = names[0]
    if category not in names:
        raise DataError(f"{root / _SPLIT} has no category '{category}'", f"it has {', '.join(names)}")
    train: list[Sample] = []
    test: list[Sample] = []
    for row in (row for row in rows if row["object"] == category):
        path = _file(root, row["image"])
        if row["label"] == "normal":
            (train if row["split"] == "train" else test).append(Sample(path, 0, GOOD))
        elif row["split"] == "test":
            mask = _file(root, row["mask"]) if row["mask"] else None
            test.append(Sample(path, 1, "anomaly", mask))
    if not train:
        raise DataError(f"{root / _SPLIT} lists no normal training images of '{category}'", "check the split file")
    return Dataset(category, "visa", root, tuple(train), tuple(test))


def _rows(root: Path) -> list[dict[str, str]]:
    path = root / _SPLIT
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise DataError(f"{path} has no column {', '.join(absent)}", f"columns: {','.join(_COLUMNS)}")
            rows = [{name: (row[name] or "").strip() for name in _COLUMNS} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}", "restore it from the VisA archive") from error
    for number, row in enumerate(rows, start=2):
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise DataError(
                f"{path} line {number}: split '{row['split']}', label '{row['label']}'",
                "split is train or test, label is normal or anomaly",
            )
    if not rows:
        raise DataError(f"{path} lists no images", "restore it from the VisA archive")
    return rows


def _file(root: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{root / _SPLIT} names a file outside {root}: {name}", "paths are relative to the root")
    path = root / relative
    if not path.is_file():
        raise DataError(f"{root / _SPLIT} names {name or 'an empty path'}, which is not a file", f"expected {path}")
    return path
