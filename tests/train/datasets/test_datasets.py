from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.errors import DataError
from tests.train.datasets.trees import image, mask
from train.datasets import Dataset, Sample, load_images, load_mask, open_dataset

RNG = np.random.default_rng(5)
SHARED = Path(os.environ.get("REDI_SHARED_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))


def make_mvtec(root: Path) -> Path:
    for number in range(3):
        image(root / "train/good" / f"{number:03}.png")
    for number in range(2):
        image(root / "test/good" / f"{number:03}.png")
        image(root / "test/scratch" / f"{number:03}.png")
        mask(root / "ground_truth/scratch" / f"{number:03}_mask.png")
    image(root / "test/dent/000.png")
    mask(root / "ground_truth/dent/000.png")
    image(root / "test/colour/000.png")
    return root


def make_visa(root: Path) -> Path:
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for number in range(4):
            relative = f"{name}/Data/Images/Normal/{number:04}.JPG"
            image(root / relative)
            rows.append(f"{name},{'train' if number < 3 else 'test'},normal,{relative},")
        relative, marked = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        image(root / relative)
        mask(root / marked)
        rows.append(f"{name},test,anomaly,{relative},{marked}")
    (root / "split_csv").mkdir(parents=True)
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def make_kolektorsdd(root: Path, items: int = 5) -> Path:
    for item in range(1, items + 1):
        for part in range(3):
            image(root / f"kos{item:02}" / f"Part{part}.jpg", (20, 50))
            mask(root / f"kos{item:02}" / f"Part{part}_label.bmp", (20, 50), defect=part == item % 3)
    return root


def make_kolektorsdd2(root: Path) -> Path:
    for split, first in (("train", 10000), ("test", 20000)):
        for number in range(first, first + 4):
            image(root / split / f"{number}.png", (23, 63))
            mask(root / split / f"{number}_GT.png", (23, 63), defect=number % 2 == 1)
    return root


def names(dataset: Dataset, samples: tuple[Sample, ...]) -> list[str]:
    return [sample.path.relative_to(dataset.root).as_posix() for sample in samples]


# Layouts


def test_mvtec_category(tmp_path: Path) -> None:
    dataset = open_dataset(make_mvtec(tmp_path / "bottle"))
    assert (dataset.name, dataset.layout) == ("bottle", "mvtec")
    assert names(dataset, dataset.train) == [f"train/good/00{n}.png" for n in range(3)]
    seen = [
        (name, sample.label, sample.kind)
        for name, sample in zip(names(dataset, dataset.test), dataset.test, strict=True)
    ]
    assert seen == [
        ("test/colour/000.png", 1, "colour"),
        ("test/dent/000.png", 1, "dent"),
        ("test/good/000.png", 0, "good"),
        ("test/good/001.png", 0, "good"),
        ("test/scratch/000.png", 1, "scratch"),
        ("test/scratch/001.png", 1, "scratch"),
    ]
    masks = [sample.mask and sample.mask.relative_to(dataset.root).as_posix() for sample in dataset.test]
    scratch = ["ground_truth/scratch/000_mask.png", "ground_truth/scratch/001_mask.png"]
    assert masks == [None, "ground_truth/dent/000.png", None, None, *scratch]
    assert all(sample.label == 0 and sample.mask is None for sample in dataset.train)


def test_mvtec_root_needs_a_category(tmp_path: Path) -> None:
    for name in ("screw", "bottle"):
        make_mvtec(tmp_path / name)
    (tmp_path / "licence").mkdir()
    with pytest.raises(DataError, match="bottle, screw"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, category="screw").name == "screw"
    with pytest.raises(DataError, match="no category 'nut'") as caught:
        open_dataset(tmp_path, category="nut")
    assert "bottle, screw" in caught.value.hint
    shutil.rmtree(tmp_path / "screw")
    assert open_dataset(tmp_path).name == "bottle"


def test_mvtec_masks_that_fit_no_image_are_an_error(tmp_path: Path) -> None:
    make_mvtec(tmp_path)
    for path in (tmp_path / "ground_truth/scratch").iterdir():
        path.rename(path.with_name("gt_" + path.name))
    with pytest.raises(DataError, match="none of the 2 masks"):
        open_dataset(tmp_path)


def test_train_only_mvtec_has_no_tests(tmp_path: Path) -> None:
    image(tmp_path / "train/good/a.png")
    assert open_dataset(tmp_path).test == ()


def test_plain_folder_nested_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.PNG", "shift b/1.JPG", "shift a/3.bmp", ".hidden.png", ".cache/4.png", "a.tiff"):
        image(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "notes.txt").write_text("good parts of Monday")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "folder"
    assert names(dataset, dataset.train) == ["2.PNG", "10.png", "a.tiff", "shift a/3.bmp", "shift b/1.JPG"]
    assert dataset.test == ()


def test_visa(tmp_path: Path) -> None:
    make_visa(tmp_path / "VisA")
    with pytest.raises(DataError, match="candle, pcb1"):
        open_dataset(tmp_path / "VisA")
    with pytest.raises(DataError, match="no category 'pcb2'"):
        open_dataset(tmp_path / "VisA", category="pcb2")
    dataset = open_dataset(tmp_path / "VisA", category="pcb1")
    assert (dataset.name, dataset.layout) == ("pcb1", "visa")
    assert names(dataset, dataset.train) == [f"pcb1/Data/Images/Normal/000{n}.JPG" for n in range(3)]
    assert [(sample.label, sample.kind) for sample in dataset.test] == [(0, "good"), (1, "anomaly")]
    assert dataset.test[1].mask == tmp_path / "VisA/pcb1/Data/Masks/Anomaly/000.png"
    # The category's own folder is as good.
    assert open_dataset(tmp_path / "VisA/candle").name == "candle"
    with pytest.raises(DataError, match="not 'pcb1'"):
        open_dataset(tmp_path / "VisA/candle", category="pcb1")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("object,", "product,", "no column object"),
        ("test,anomaly", "test,broken", "line 6: split 'test', label 'broken'"),
        ("Normal/0001", "Normal/9999", "not a file"),
        ("candle/Data/Images/Normal/0001.JPG", "../secret.png", "outside"),
        ("candle,train,normal", "candle,test,normal", "no normal training images"),
    ],
)
def test_visa_split_file_errors(tmp_path: Path, old: str, new: str, problem: str) -> None:
    split = make_visa(tmp_path) / "split_csv/1cls.csv"
    split.write_text(split.read_text().replace(old, new))
    with pytest.raises(DataError, match=problem):
        open_dataset(tmp_path, category="candle")


def test_visa_empty_or_binary_split_file(tmp_path: Path) -> None:
    split = make_visa(tmp_path) / "split_csv/1cls.csv"
    split.write_text("object,split,label,image,mask\n")
    with pytest.raises(DataError, match="lists no images"):
        open_dataset(tmp_path)
    split.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(tmp_path)


def test_kolektorsdd_splits_by_item(tmp_path: Path) -> None:
    dataset = open_dataset(make_kolektorsdd(tmp_path))
    assert dataset.layout == "kolektorsdd"
    # Of five items three train, with their good parts: kos01's defect is Part1, kos02's Part2, kos03's Part0.
    assert names(dataset, dataset.train) == [
        *("kos01/Part0.jpg", "kos01/Part2.jpg", "kos02/Part0.jpg", "kos02/Part1.jpg"),
        *("kos03/Part1.jpg", "kos03/Part2.jpg"),
    ]
    tested = [(name, sample.label) for name, sample in zip(names(dataset, dataset.test), dataset.test, strict=True)]
    assert tested == [(f"kos0{i}/Part{p}.jpg", int(p == i % 3)) for i in (4, 5) for p in range(3)]
    assert [sample.mask is not None for sample in dataset.test] == [sample.label == 1 for sample in dataset.test]


def test_training_defects_are_coarse_anomalies_without_masks(tmp_path: Path) -> None:
    old, new = open_dataset(make_kolektorsdd(tmp_path / "1")), open_dataset(make_kolektorsdd2(tmp_path / "2"))
    split = make_visa(tmp_path / "3") / "split_csv/1cls.csv"
    split.write_text(split.read_text().replace("pcb1,test,anomaly", "pcb1,train,anomaly"))
    visa = open_dataset(tmp_path / "3", category="pcb1")
    assert names(old, old.coarse) == ["kos01/Part1.jpg", "kos02/Part2.jpg", "kos03/Part0.jpg"]
    assert names(new, new.coarse) == ["train/10001.png", "train/10003.png"]
    assert names(visa, visa.coarse) == ["pcb1/Data/Images/Anomaly/000.JPG"]
    assert not any(sample.label for sample in visa.test)
    assert all(s.label == 1 and s.mask is None for dataset in (old, new, visa) for s in dataset.coarse)


def test_kolektorsdd_item_order_is_numeric(tmp_path: Path) -> None:
    make_kolektorsdd(tmp_path, 12)
    (tmp_path / "kos02").rename(tmp_path / "kos2")
    dataset = open_dataset(tmp_path)
    assert {sample.path.parent.name for sample in dataset.train} == {
        *("kos01", "kos2", "kos03", "kos04", "kos05", "kos06")
    }


def test_kolektorsdd2_trains_on_good_only(tmp_path: Path) -> None:
    dataset = open_dataset(make_kolektorsdd2(tmp_path))
    assert dataset.layout == "kolektorsdd2"
    assert names(dataset, dataset.train) == ["train/10000.png", "train/10002.png"]
    tested = [
        (name, sample.label, sample.kind)
        for name, sample in zip(names(dataset, dataset.test), dataset.test, strict=True)
    ]
    assert tested == [
        ("test/20000.png", 0, "good"),
        ("test/20001.png", 1, "defect"),
        ("test/20002.png", 0, "good"),
        ("test/20003.png", 1, "defect"),
    ]


@pytest.mark.parametrize("make", [make_kolektorsdd, make_kolektorsdd2])
def test_kolektor_image_without_label_is_named(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path)
    label = next(path for path in sorted(tmp_path.rglob("*")) if "_label" in path.name or "_GT" in path.name)
    label.unlink()
    with pytest.raises(DataError, match="no label image") as caught:
        open_dataset(tmp_path)
    assert label.stem in caught.value.problem


def test_train_and_test_folders_are_told_apart_by_content(tmp_path: Path) -> None:
    make_kolektorsdd2(tmp_path / "k")
    (tmp_path / "k/train/good").mkdir()
    assert open_dataset(tmp_path / "k").layout == "kolektorsdd2"
    make_mvtec(tmp_path / "m")
    assert open_dataset(tmp_path / "m").layout == "mvtec"
    make_mvtec(tmp_path / "k")
    with pytest.raises(DataError, match="both"):
        open_dataset(tmp_path / "k")
    assert open_dataset(tmp_path / "k", layout="mvtec").layout == "mvtec"
    assert open_dataset(tmp_path / "k", layout="kolektorsdd2").layout == "kolektorsdd2"


# Refusals


def test_missing_empty_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="not a folder"):
        open_dataset(image(tmp_path / "x" / "a.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").touch()
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "empty"))) as caught:
        open_dataset(tmp_path / "empty")
    for accepted in ("train/good", "plain folder", "1cls.csv", "kos01", "_GT.png"):
        assert accepted in caught.value.hint
    with pytest.raises(DataError, match="unknown layout 'coco'"):
        open_dataset(tmp_path / "x", layout="coco")
    with pytest.raises(DataError, match="no categories"):
        open_dataset(tmp_path / "x", category="bottle")


@pytest.mark.parametrize("layout", ["mvtec", "folder", "visa", "kolektorsdd", "kolektorsdd2"])
def test_every_layout_refuses_an_empty_folder(tmp_path: Path, layout: str) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        open_dataset(tmp_path, layout=layout)


def test_incomplete_layout_is_not_taken_for_a_plain_folder(tmp_path: Path) -> None:
    make_mvtec(tmp_path)
    shutil.rmtree(tmp_path / "train/good")
    (tmp_path / "train/good").mkdir()
    with pytest.raises(DataError, match="no good training images"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="train/good"):
        open_dataset(tmp_path, layout="mvtec")


def test_good_beside_bad_is_not_taken_for_a_plain_folder(tmp_path: Path) -> None:
    image(tmp_path / "OK/1.png")
    image(tmp_path / "NG/1.png")
    with pytest.raises(DataError, match="NG") as caught:
        open_dataset(tmp_path)
    assert str(tmp_path / "OK") in caught.value.hint
    assert len(open_dataset(tmp_path / "OK").train) == 1
    assert len(open_dataset(tmp_path, layout="folder").train) == 2


def test_kolektorsdd2_without_good_images(tmp_path: Path) -> None:
    make_kolektorsdd2(tmp_path)
    for number in (10000, 10002):
        mask(tmp_path / "train" / f"{number}_GT.png", (23, 63))
    with pytest.raises(DataError, match="no good images"):
        open_dataset(tmp_path)


# Real images


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data sets here")
@pytest.mark.parametrize(
    ("name", "train", "good", "marked", "unmarked"),
    [("bottle", 209, 20, 63, 0), ("magnetic_tile", 150, 50, 172, 0), ("cookie", 31, 14, 32, 8)],
)
def test_real_sets_have_their_stated_counts(name: str, train: int, good: int, marked: int, unmarked: int) -> None:
    dataset = open_dataset(SHARED / name)
    defects = [sample for sample in dataset.test if sample.label]
    counts = [sum(sample.mask is not None for sample in defects), sum(sample.mask is None for sample in defects)]
    assert (dataset.layout, len(dataset.train), len(dataset.test) - len(defects)) == ("mvtec", train, good)
    assert counts == [marked, unmarked]
    sample, pixels = next(load_images([sample for sample in defects if sample.mask]))
    found = load_mask(sample, (256, 256), image_shape=pixels.shape)
    assert found is not None
    assert found.any()
