"""The MVTec AD layout: `train/good`, `test/<kind>`, `ground_truth/<kind>/<stem>_mask.png`.

P. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
"""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError
from edge.images import list_images
from train.datasets.base import ACCEPTED, GOOD, Dataset, Sample


def is_category(path: Path) -> bool:
    """Say whether `path` is one category: it has images in `train/good`."""
    folder = path / "train" / GOOD
    return folder.is_dir() and bool(list_images(folder))


def categories(root: Path) -> list[str]:
    """Return the names of the categories right under `root`, sorted."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and is_category(path))


def read_mvtec(root: Path, category: str | None = None) -> Dataset:
    """Return one category: `root` itself, or `root/category`.

    A root of one category needs no `category`.

    Raises:
        DataError: the category is missing, not given, or has no good training images; or none of a kind's
            masks has the name of an image.
    """
    folder = _category_folder(root, category)
    good = folder / "train" / GOOD
    images = list_images(good) if good.is_dir() else []
    if not images:
        raise DataError(f"{good} has no images", ACCEPTED)
    train = tuple(Sample(path, 0, GOOD) for path in images)
    test: list[Sample] = []
    tests = folder / "test"
    if tests.is_dir():
        for kind in sorted(path for path in tests.iterdir() if path.is_dir() and not path.name.startswith(".")):
            test += _kind_samples(kind, folder / "ground_truth" / kind.name)
    return Dataset(folder.resolve().name, "mvtec", folder, train, tuple(test))


def _category_folder(root: Path, category: str | None) -> Path:
    names = [] if is_category(root) else categories(root)
    if category is None:
        if len(names) > 1:
            raise DataError(f"{root} has several categories: {', '.join(names)}", "name one of them as the category")
        return root / names[0] if names else root
    if not names and category == root.resolve().name:
        return root
    if category not in names:
        found = f"it has {', '.join(names)}" if names else ACCEPTED
        raise DataError(f"{root} has no category '{category}' with images in train/good", found)
    return root / category


def _kind_samples(folder: Path, masks_folder: Path) -> list[Sample]:
    images = list_images(folder)
    if folder.name.casefold() == GOOD:
        return [Sample(path, 0, GOOD) for path in images]
    masks = {path.stem: path for path in list_images(masks_folder)} if masks_folder.is_dir() else {}
    samples = [Sample(path, 1, folder.name, masks.get(f"{path.stem}_mask") or masks.get(path.stem)) for path in images]
    if masks and images and all(sample.mask is None for sample in samples):
        raise DataError(
            f"none of the {len(masks)} masks in {masks_folder} has the name of an image in {folder}",
            f"the mask of {images[0].name} is {images[0].stem}_mask.png or {images[0].stem}.png",
        )
    return samples
