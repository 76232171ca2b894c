"""The VisA layout: `<category>/Data/Images/…` with the split in `split_csv/1cls.csv`.

Y. Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation",
ECCV 2022.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from edge.errors import DataError
from train.datasets.base import GOOD, Dataset, Sample
from train.datasets.table import read_table

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


def visa_categories(root: Path) -> list[str]:
    """Return the names of the categories in the split file, sorted.

    Raises:
        DataError: it is missing or malformed.
    """
    return sorted({row["object"] for row in _rows(root)})


def read_visa(root: Path, category: str | None = None) -> Dataset:
    """Return one category by the one-class split: good images for training, the rest for testing.

    Anomalous images that a split file puts into `train` are the coarse anomalies.

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
    coarse: list[Sample] = []
    for row in (row for row in rows if row["object"] == category):
        path = _file(root, row["image"])
        if row["label"] == "normal":
            (train if row["split"] == "train" else test).append(Sample(path, 0, GOOD))
        elif row["split"] == "train":
            coarse.append(Sample(path, 1, "anomaly"))
        else:
            mask = _file(root, row["mask"]) if row["mask"] else None
            test.append(Sample(path, 1, "anomaly", mask))
    if not train:
        raise DataError(f"{root / _SPLIT} lists no normal training images of '{category}'", "check the split file")
    return Dataset(category, "visa", root, tuple(train), tuple(test), tuple(coarse))


def _rows(root: Path) -> list[dict[str, str]]:
    path = root / _SPLIT
    rows = read_table(path, _COLUMNS)
    for number, row in rows:
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise DataError(
                f"{path} line {number}: split '{row['split']}', label '{row['label']}'",
                "split is train or test, label is normal or anomaly",
            )
    return [row for _, row in rows]


def _file(root: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{root / _SPLIT} names a file outside {root}: {name}", "paths are relative to the root")
    path = root / relative
    if not path.is_file():
        raise DataError(f"{root / _SPLIT} names {name or 'an empty path'}, which is not a file", f"expected {path}")
    return path
