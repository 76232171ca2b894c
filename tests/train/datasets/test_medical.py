"""ISIC2018, Br35H, OCT2017 and chest X-ray, in small trees of their published layouts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import DataError
from tests.train.datasets.trees import image
from train.datasets import LAYOUTS, Dataset, Sample, load_images, open_dataset
from train.datasets.base import GOOD

ISIC_CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
OCT_CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


def isic_split(root: Path, split: str, kinds: list[str], *, flat: bool = False) -> Path:
    """Write a split with an image of each of these kinds; return its label file."""
    stem = f"ISIC2018_Task3_{split}"
    rows = [",".join(("image", *ISIC_CLASSES))]
    (root / f"{stem}_Input").mkdir(parents=True)
    (root / f"{stem}_Input/ATTRIBUTION.txt").touch()
    for number, kind in enumerate(kinds):
        (root / f"{stem}_Input/ISIC_{number:07}.jpg").touch()
        rows.append(",".join([f"ISIC_{number:07}", *("1.0" if name == kind else "0.0" for name in ISIC_CLASSES)]))
    labels = root / ("" if flat else f"{stem}_GroundTruth") / f"{stem}_GroundTruth.csv"
    labels.parent.mkdir(exist_ok=True)
    labels.write_text("\n".join(rows) + "\n")
    return labels


def make_isic(root: Path) -> Path:
    isic_split(root, "Training", ["NV", "MEL", "NV", "VASC", "NV"])
    isic_split(root, "Validation", ["BKL", "NV", "NV"])
    return root


def make_br35h(root: Path, healthy: int = 10, tumours: int = 10) -> Path:
    for number in range(healthy):
        image(root / "no" / f"no{number}.jpg")
    for number in range(tumours):
        image(root / "yes" / f"y{number}.jpg")
    return root


def make_classes(root: Path, classes: tuple[str, ...], train: int = 2, test: int = 1) -> Path:
    for split, count in (("train", train), ("test", test)):
        for kind in classes:
            for number in range(count):
                image(root / split / kind / f"{kind}-{number}.jpeg")
    return root


def names(dataset: Dataset, samples: tuple[Sample, ...]) -> list[str]:
    return [sample.path.relative_to(dataset.root).as_posix() for sample in samples]


def labels(samples: tuple[Sample, ...]) -> list[tuple[int, str]]:
    return [(sample.label, sample.kind) for sample in samples]


def test_isic_trains_on_nevi_and_tests_on_the_validation_split(tmp_path: Path) -> None:
    dataset = open_dataset(make_isic(tmp_path / "ISIC2018"))
    assert (dataset.name, dataset.layout) == ("ISIC2018", "isic2018")
    folder = "ISIC2018_Task3_Training_Input"
    assert names(dataset, dataset.train) == [f"{folder}/ISIC_000000{n}.jpg" for n in (0, 2, 4)]
    assert names(dataset, dataset.coarse) == [f"{folder}/ISIC_000000{n}.jpg" for n in (1, 3)]
    assert labels(dataset.coarse) == [(1, "MEL"), (1, "VASC")]
    assert labels(dataset.test) == [(0, GOOD), (0, GOOD), (1, "BKL")]
    assert all("Validation" in name for name in names(dataset, dataset.test))


def test_isic_labels_may_lie_beside_the_images_and_validation_may_be_absent(tmp_path: Path) -> None:
    isic_split(tmp_path, "Training", ["NV", "DF"], flat=True)
    dataset = open_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.coarse), dataset.test) == (1, 1, ())


@given(st.lists(st.sampled_from(ISIC_CLASSES), min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_isic_gives_every_listed_image_its_class(kinds: list[str], random) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        table = isic_split(Path(folder), "Training", kinds)
        head, *rows = table.read_text().splitlines()
        random.shuffle(rows)
        table.write_text("\n".join([head, *rows]))
        if "NV" not in kinds:
            with pytest.raises(DataError, match="no image of class NV"):
                open_dataset(folder)
            return
        dataset = open_dataset(folder)
        found = {sample.path.stem: sample.kind for sample in (*dataset.train, *dataset.coarse)}
        assert found == {f"ISIC_{n:07}": GOOD if kind == "NV" else kind for n, kind in enumerate(kinds)}
        assert {sample.kind for sample in dataset.train} == {GOOD}
        listed = [row.split(",")[0] for row in rows]
        assert [s.path.stem for s in dataset.train] == [name for name in listed if found[name] == GOOD]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("MEL,NV", "MEL,NEVUS", "no column NV"),
        ("image,", "file,", "no column image"),
        ("ISIC_0000001,1.0", "ISIC_0000001,0.0", "line 3: .* does not mark one class"),
        ("ISIC_0000000,0.0", "ISIC_0000000,1.0", "line 2: .* does not mark one class"),
        ("ISIC_0000001,1.0", "ISIC_0000001,yes", "line 3: yes,.* does not mark one class"),
        ("ISIC_0000002", "ISIC_9999999", "line 4 names 'ISIC_9999999', which is not in .*Training_Input"),
        ("ISIC_0000003", "../ISIC_0000003", "line 5 names '../ISIC_0000003', which is not in"),
        ("ISIC_0000004", "ISIC_0000002", "line 6 names ISIC_0000002 again, after line 4"),
    ],
)
def test_isic_label_file_errors_name_file_and_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    make_isic(tmp_path)
    table = tmp_path / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=problem) as caught:
        open_dataset(tmp_path)
    assert str(table) in caught.value.problem


@pytest.mark.parametrize("missing", ["Training_Input", "Training_GroundTruth", "Validation_Input"])
def test_isic_part_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    make_isic(tmp_path)
    shutil.rmtree(tmp_path / f"ISIC2018_Task3_{missing}")
    with pytest.raises(DataError, match=missing):
        open_dataset(tmp_path)


def test_isic_label_file_that_is_empty_or_binary(tmp_path: Path) -> None:
    table = isic_split(tmp_path, "Training", [])
    with pytest.raises(DataError, match="lists no images"):
        open_dataset(tmp_path)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(tmp_path)


def test_br35h_splits_both_classes_four_to_one(tmp_path: Path) -> None:
    dataset = open_dataset(make_br35h(tmp_path / "Br35H", healthy=11, tumours=5))
    assert dataset.layout == "br35h"
    # As text: no10 comes before no2.
    assert names(dataset, dataset.train) == [f"no/no{n}.jpg" for n in (0, 1, 10, 2, 3, 4, 5, 6)]
    assert names(dataset, dataset.coarse) == [f"yes/y{n}.jpg" for n in range(4)]
    assert names(dataset, dataset.test) == [*(f"no/no{n}.jpg" for n in (7, 8, 9)), "yes/y4.jpg"]
    assert labels(dataset.test) == [(0, GOOD)] * 3 + [(1, "tumour")]
    assert len(list(load_images(dataset.coarse))) == 4


@given(st.integers(2, 40), st.integers(2, 40))
@settings(max_examples=15, deadline=None)
def test_br35h_is_split_as_by_the_published_code(healthy: int, tumours: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, stem, count in (("no", "no", healthy), ("yes", "y", tumours)):
            Path(folder, name).mkdir()
            for number in range(count):
                Path(folder, name, f"{stem}{number}.jpg").touch()
        dataset = open_dataset(folder)
        assert [s.path.name for s in dataset.train] == sorted(f"no{n}.jpg" for n in range(healthy))[
            : int(healthy * 0.8)
        ]
        assert len(dataset.coarse) == int(tumours * 0.8)
        everything = [s.path for s in (*dataset.train, *dataset.coarse, *dataset.test)]
        assert sorted(everything) == sorted(Path(folder).glob("*/*.jpg"))


def test_br35h_too_small_to_split(tmp_path: Path) -> None:
    make_br35h(tmp_path, healthy=1)
    with pytest.raises(DataError, match="no has 1 images"):
        open_dataset(tmp_path)
    shutil.rmtree(tmp_path / "yes")
    with pytest.raises(DataError, match="no has 1 images"):
        open_dataset(tmp_path, layout="br35h")


@pytest.mark.parametrize(("layout", "classes"), [("oct2017", OCT_CLASSES), ("chest_xray", ("NORMAL", "PNEUMONIA"))])
def test_folders_by_class(tmp_path: Path, layout: str, classes: tuple[str, ...]) -> None:
    make_classes(tmp_path, classes)
    (tmp_path / "train/.DS_Store").touch()
    image(tmp_path / "val/NORMAL/1.jpeg")
    dataset = open_dataset(tmp_path)
    diseases = [name for name in classes if name != "NORMAL"]
    assert dataset.layout == layout
    assert names(dataset, dataset.train) == [f"train/NORMAL/NORMAL-{n}.jpeg" for n in range(2)]
    assert labels(dataset.coarse) == [(1, name) for name in diseases for _ in range(2)]
    assert labels(dataset.test) == [(0, GOOD), *((1, name) for name in diseases)]
    assert not {s.path for s in dataset.coarse} & {s.path for s in dataset.test}


def test_a_class_that_is_missing_empty_or_unknown_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, OCT_CLASSES)
    image(tmp_path / "train/GLAUCOMA/1.jpeg")
    with pytest.raises(DataError, match="train/GLAUCOMA: no class of oct2017"):
        open_dataset(tmp_path)
    shutil.rmtree(tmp_path / "train/GLAUCOMA")
    (tmp_path / "test/DME/DME-0.jpeg").unlink()
    with pytest.raises(DataError, match="test/DME has no images"):
        open_dataset(tmp_path)
    shutil.rmtree(tmp_path / "train/CNV")
    with pytest.raises(DataError, match="train/CNV has no images"):
        open_dataset(tmp_path)


def test_without_the_normal_class_the_layout_must_be_named_and_says_what_is_missing(tmp_path: Path) -> None:
    make_classes(tmp_path, ("PNEUMONIA",))
    with pytest.raises(DataError, match="no good training images"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="train/NORMAL has no images"):
        open_dataset(tmp_path, layout="chest_xray")


@pytest.mark.parametrize("layout", ["isic2018", "br35h", "oct2017", "chest_xray"])
def test_a_medical_layout_refuses_an_empty_folder_and_a_category(tmp_path: Path, layout: str) -> None:
    assert layout in LAYOUTS
    with pytest.raises(DataError, match=str(tmp_path)):
        open_dataset(tmp_path, layout=layout)
    with pytest.raises(DataError, match="no categories"):
        open_dataset(tmp_path, layout=layout, category="NV")
