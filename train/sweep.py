"""Many trainings, one per product and seed: what is to be run.

DIR/<product>/seed<N>/       the run's folder, as train-run makes it
DIR/<product>/seed<N>.log    what train-run and train-eval said, all attempts
DIR/<product>/seed<N>.json   how the last attempt ended
DIR/summary.json, .md        the whole sweep
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.errors import DataError, EdgeError, UsageError
from train.datasets import open_dataset
from train.datasets.mvtec import categories, is_category
from train.datasets.visa import visa_categories, visa_root


class ProductSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[product]]` of a sweep file."""

    data: str
    name: str | None = None
    options: dict[str, bool | int | float | str] = {}


class SweepSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sweep file: products, and options of train-run for all of them."""

    product: list[ProductSpec]
    seeds: list[int] | None = None
    options: dict[str, bool | int | float | str] = {}


@dataclass(frozen=True)
class Product:
    """What is trained: a name, its images and its own options of train-run."""

    name: str
    data: Path
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One run: arguments of train-run, and of train-eval where the product has labelled test images."""

    product: str
    seed: int
    folder: Path
    train: tuple[str, ...]
    evaluate: tuple[str, ...] | None
    threads: int
    directory: Path

    @property
    def log(self) -> Path:
        """The file that takes what the run says."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def record(self) -> Path:
        """The file that says how it ended."""
        return self.folder.with_name(f"{self.folder.name}.json")


def read_spec(path: Path) -> tuple[list[Product], list[int] | None]:
    """Read a sweep file; folders in it are relative to it.

    Raises:
        DataError: it cannot be read, or is no sweep file.
    """
    try:
        spec = msgspec.toml.decode(path.read_bytes(), type=SweepSpec)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check the file and its permissions") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "docs/scale.md shows a sweep file") from error
    products = []
    for entry in spec.product:
        options = as_arguments({**spec.options, **entry.options})
        found = expand(path.parent / entry.data, options)
        if entry.name is not None and len(found) == 1:
            found = [Product(entry.name, found[0].data, found[0].options)]
        products += found
    return products, spec.seeds


def as_arguments(options: Mapping[str, bool | int | float | str]) -> tuple[str, ...]:
    """Return options by name as command-line arguments; True is a flag, False leaves it out."""
    return tuple(
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not False
    )


def expand(data: Path, options: Sequence[str] = ()) -> list[Product]:
    """Return the products in a folder: the categories of a data set that holds several, else the folder itself.

    What is wrong with a folder is left to its own run to say.
    """
    data, own = Path(os.path.abspath(data)), tuple(options)
    try:
        if any(option.startswith("--category=") for option in own):
            return [Product(next(o for o in own if o.startswith("--category=")).partition("=")[2], data, own)]
        visa = visa_root(data)
        if visa is not None and visa[1] is None:
            return [Product(name, data, (*own, f"--category={name}")) for name in visa_categories(data)]
        if data.is_dir() and not is_category(data) and not any(o.startswith("--layout=") for o in own):
            several = categories(data)
            if several:
                return [Product(name, data / name, own) for name in several]
    except (EdgeError, OSError):
        # The run meets the same and says it.
        pass
    return [Product(data.name, data, own)]


def plan(
    products: Iterable[Product], seeds: Sequence[int], out: Path, options: Sequence[str], threads: int
) -> list[Job]:
    """Return one job per product and seed, in order; `options` of train-run hold for all of them.

    Raises:
        UsageError: two products have the same name, or a name is no folder's name.
    """
    jobs = []
    names: set[str] = set()
    directory = Path.cwd()
    for product in products:
        name = product.name
        if name in names:
            raise UsageError(f"two products are called {name!r}", "give them names in a sweep file: docs/scale.md")
        if not name or name in (".", "..") or "/" in name:
            raise UsageError(f"{name!r} cannot be a product's folder", "give it another name")
        names.add(name)
        arguments = (*product.options, *options, f"--threads={threads}")
        test = _test_arguments(product, arguments)
        for seed in seeds:
            folder = Path(os.path.abspath(out)) / name / f"seed{seed}"
            train = (str(product.data), f"--out={folder}", f"--seed={seed}", *arguments)
            evaluate = None if test is None else (str(folder), str(product.data), *test, "--json")
            jobs.append(Job(name, seed, folder, train, evaluate, threads, directory))
    return jobs


def _test_arguments(product: Product, arguments: Sequence[str]) -> tuple[str, ...] | None:
    """Return what train-eval needs to know of the data set, None where it has no labelled test images."""
    given = dict(a[2:].split("=", 1) for a in arguments if a.startswith(("--layout=", "--category=")))
    try:
        dataset = open_dataset(product.data, layout=given.get("layout", "auto"), category=given.get("category"))
    except EdgeError:
        return None
    return as_arguments(given) if {sample.label for sample in dataset.test} == {0, 1} else None
