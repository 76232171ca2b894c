"""Data sets by their published folder layouts: `open_dataset` tells them apart."""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError
from train.datasets.base import Dataset, Mask, Sample, load_images, load_mask
from train.datasets.folder import check_plain, read_folder
from train.datasets.kolektor import is_kolektorsdd, is_kolektorsdd2, read_kolektorsdd, read_kolektorsdd2
from train.datasets.medical import (
    DISEASES,
    class_layout,
    is_br35h,
    is_isic2018,
    read_br35h,
    read_classes,
    read_isic2018,
)
from train.datasets.mvtec import categories, is_category, read_mvtec
from train.datasets.visa import read_visa, visa_root

__all__ = ["LAYOUTS", "Dataset", "Mask", "Sample", "load_images", "load_mask", "open_dataset"]

LAYOUTS = ("mvtec", "folder", "visa", "kolektorsdd", "kolektorsdd2", "isic2018", "br35h", *DISEASES)


def open_dataset(path: Path | str, *, layout: str = "auto", category: str | None = None) -> Dataset:
    """Return the data set at `path`, its layout one of `LAYOUTS` or found out from its folders (`auto`).

    `category` chooses one product where the layout has several.  Images are not decoded yet.

    Raises:
        DataError: the folder is missing, empty, ambiguous or of no known layout, or has no good training
            images.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder" if root.exists() else f"{root} does not exist", "give a folder")
    try:
        chosen = _recognise(root) if layout == "auto" else layout
        return _read(root, chosen, category)
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror}", "check the folder's permissions") from error


def _recognise(root: Path) -> str:
    if visa_root(root):
        return "visa"
    # MVTec AD and KolektorSDD2 both have folders train and test: what lies in them decides.
    mvtec, kolektorsdd2 = is_category(root), is_kolektorsdd2(root)
    if mvtec and kolektorsdd2:
        raise DataError(
            f"{root} is both MVTec AD (images in train/good) and KolektorSDD2 (_GT images in train or test)",
            "say which: --layout mvtec or --layout kolektorsdd2",
        )
    if mvtec:
        return "mvtec"
    if kolektorsdd2:
        return "kolektorsdd2"
    if is_kolektorsdd(root):
        return "kolektorsdd"
    if is_isic2018(root):
        return "isic2018"
    if is_br35h(root):
        return "br35h"
    if layout := class_layout(root):
        return layout
    if categories(root):
        return "mvtec"
    check_plain(root)
    return "folder"


def _read(root: Path, layout: str, category: str | None) -> Dataset:
    if layout == "mvtec":
        return read_mvtec(root, category)
    if layout == "visa":
        found, own = visa_root(root) or (root, None)
        if own and category and category != own:
            raise DataError(f"{root} is the category '{own}', not '{category}'", f"give {found} to choose another")
        return read_visa(found, category or own)
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout '{layout}'", f"one of {', '.join(LAYOUTS)}")
    if category is not None:
        raise DataError(f"{root} has no categories (layout {layout}): '{category}'", "leave the category out")
    if layout == "kolektorsdd":
        return read_kolektorsdd(root)
    if layout == "kolektorsdd2":
        return read_kolektorsdd2(root)
    if layout == "isic2018":
        return read_isic2018(root)
    if layout == "br35h":
        return read_br35h(root)
    if layout in DISEASES:
        return read_classes(root, layout)
    return read_folder(root)
