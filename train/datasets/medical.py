"""The medical layouts of CKAAD's experiments: ISIC2018, Br35H, OCT2017 and chest X-ray.  Image labels only.

The healthy class trains; the other classes of the training split are the coarse anomalies.

N. Codella et al., "Skin Lesion Analysis Toward Melanoma Detection 2018", 2019 (task 3); A. Hamada, "Br35H: Brain Tumor
Detection 2020"; D. Kermany et al., "Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep
Learning", Cell 2018 (OCT2017 and chest X-ray).  The splits are those of CKAAD's published code.
"""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError
from edge.images import list_images
from train.datasets.base import ACCEPTED, GOOD, Dataset, Sample
from train.datasets.table import read_table

_ISIC_NORMAL = "NV"
_ISIC_CLASSES = ("MEL", _ISIC_NORMAL, "BCC", "AKIEC", "BKL", "DF", "VASC")

_NORMAL = "NORMAL"

#: Classes beside NORMAL, by layout.
DISEASES = {"oct2017": ("CNV", "DME", "DRUSEN"), "chest_xray": ("PNEUMONIA",)}

_RESTORE = "restore it from the archive"


def is_isic2018(root: Path) -> bool:
    """Say whether `root` has the training images or labels of ISIC2018's task 3."""
    return _isic_images(root, "Training").is_dir() or _isic_labels(root, "Training").is_file()


def read_isic2018(root: Path) -> Dataset:
    """Return ISIC2018 task 3: nevi (NV) of the training split train, the validation split, where there, tests.

    Raises:
        DataError: a folder or label file is missing or malformed, a listed image is missing, or none is NV.
    """
    train, coarse = _isic_split(root, "Training")
    test: list[Sample] = []
    if _isic_images(root, "Validation").is_dir() or _isic_labels(root, "Validation").is_file():
        good, diseased = _isic_split(root, "Validation")
        test = good + diseased
    return Dataset(root.resolve().name, "isic2018", root, tuple(train), tuple(test), tuple(coarse))


def _isic_images(root: Path, split: str) -> Path:
    return root / f"ISIC2018_Task3_{split}_Input"


def _isic_labels(root: Path, split: str) -> Path:
    name = f"ISIC2018_Task3_{split}_GroundTruth"
    flat = root / f"{name}.csv"
    return flat if flat.is_file() else root / name / f"{name}.csv"


def _isic_split(root: Path, split: str) -> tuple[list[Sample], list[Sample]]:
    folder, labels = _isic_images(root, split), _isic_labels(root, split)
    if not folder.is_dir():
        raise DataError(f"{folder} is missing", ACCEPTED)
    images = {path.stem: path for path in list_images(folder)}
    good: list[Sample] = []
    diseased: list[Sample] = []
    seen: dict[str, int] = {}
    for number, row in read_table(labels, ("image", *_ISIC_CLASSES)):
        name, kind = row["image"], _isic_class(labels, number, row)
        if name not in images:
            raise DataError(f"{labels} line {number} names {name!r}, which is not in {folder}", _RESTORE)
        if name in seen:
            raise DataError(f"{labels} line {number} names {name} again, after line {seen[name]}", _RESTORE)
        seen[name] = number
        if kind == _ISIC_NORMAL:
            good.append(Sample(images[name], 0, GOOD))
        else:
            diseased.append(Sample(images[name], 1, kind))
    if not good:
        raise DataError(f"{labels} lists no image of class {_ISIC_NORMAL}, the normal one", _RESTORE)
    return good, diseased


def _isic_class(path: Path, line: int, row: dict[str, str]) -> str:
    try:
        marked = [kind for kind in _ISIC_CLASSES if {0.0: False, 1.0: True}[float(row[kind])]]
    except (KeyError, ValueError):
        marked = []
    if len(marked) != 1:
        values = ",".join(row[kind] for kind in _ISIC_CLASSES)
        raise DataError(
            f"{path} line {line}: {values} does not mark one class", "one column is 1.0, the others are 0.0"
        )
    return marked[0]


def is_br35h(root: Path) -> bool:
    """Say whether `root` has images in both `no` and `yes`."""
    return all((root / name).is_dir() and list_images(root / name) for name in ("no", "yes"))


def read_br35h(root: Path) -> Dataset:
    """Return Br35H: of `no` (healthy) and `yes` (tumour), each by name, the first 80 % train and the others test.

    Raises:
        DataError: a folder is missing, or too small to be split.
    """
    parts = []
    for name, label, kind in (("no", 0, GOOD), ("yes", 1, "tumour")):
        folder = root / name
        images = list_images(folder) if folder.is_dir() else []
        if len(images) < 2:
            raise DataError(f"{folder} has {len(images)} images: a part of them trains, the others test", ACCEPTED)
        # As text, where 10 comes before 2: the published split.
        samples = [Sample(path, label, kind) for path in sorted(images, key=lambda path: path.name)]
        border = len(samples) * 4 // 5
        parts.append((samples[:border], samples[border:]))
    (train, good), (coarse, tumours) = parts
    return Dataset(root.resolve().name, "br35h", root, tuple(train), (*good, *tumours), tuple(coarse))


def class_layout(root: Path) -> str | None:
    """Return the layout of `DISEASES` that `root` has: images in `train/NORMAL`, and a folder of one of its classes."""
    normal = root / "train" / _NORMAL
    if not (normal.is_dir() and list_images(normal)):
        return None
    for layout, diseases in DISEASES.items():
        if any((root / split / name).is_dir() for split in ("train", "test") for name in diseases):
            return layout
    return None


def read_classes(root: Path, layout: str) -> Dataset:
    """Return OCT2017 or chest X-ray by its folders `train/<class>` and `test/<class>`; NORMAL trains.

    Raises:
        DataError: a class of a split is missing, empty or unknown.
    """
    train, coarse = _class_split(root / "train", layout)
    test: list[Sample] = []
    if (root / "test").is_dir():
        good, diseased = _class_split(root / "test", layout)
        test = good + diseased
    return Dataset(root.resolve().name, layout, root, tuple(train), tuple(test), tuple(coarse))


def _class_split(folder: Path, layout: str) -> tuple[list[Sample], list[Sample]]:
    classes = (_NORMAL, *DISEASES[layout])
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    unknown = sorted(
        name for name in found.difference(classes) if not name.startswith(".") and list_images(folder / name)
    )
    if unknown:
        raise DataError(f"{folder / unknown[0]}: no class of {layout}", f"its classes are {', '.join(classes)}")
    samples = {name: list_images(folder / name) if name in found else [] for name in classes}
    for name, images in samples.items():
        if not images:
            raise DataError(f"{folder / name} has no images", f"{layout} has the classes {', '.join(classes)}")
    good = [Sample(path, 0, GOOD) for path in samples.pop(_NORMAL)]
    return good, [Sample(path, 1, name) for name, images in samples.items() for path in images]
