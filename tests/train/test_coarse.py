from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
import torch

from edge.errors import DataError
from edge.images import read_image
from edge.manifest import InputSpec, MapSpec
from train.coarse import SPLIT, coarse_samples, load_coarse
from train.datasets import Dataset, Sample, open_dataset
from train.prepared import PreparedImages, prepare

SPECS = InputSpec(height=64, width=64), MapSpec()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def good(tiny_photos: Path) -> PreparedImages:
    return prepare(open_dataset(tiny_photos).train, *SPECS, CPU)


def load(folder: Path, good: PreparedImages) -> PreparedImages:
    samples = coarse_samples(str(folder), Dataset("any", "folder", folder, ()), seed=0)
    return load_coarse(samples, good, *SPECS, CPU)


def scarred(source: Path, target: Path) -> None:
    image = read_image(source)
    cv2.line(image, (20, 20), (50, 45), (0, 0, 0), 3)
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), image)


def test_coarse_images_are_prepared_like_the_good_ones(
    tiny_photos: Path, good: PreparedImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        scarred(tiny_photos / f"good{number}.png", tmp_path / "coarse" / "deeper" / f"bad{number}.png")
    coarse = load(tmp_path / "coarse", good)
    assert coarse.names == ["bad0.png", "bad1.png"]
    assert coarse.x.shape[1:] == good.x.shape[1:]
    assert coarse.h.shape[1:] == good.h.shape[1:]
    assert coarse.descriptors.shape[1:] == good.descriptors.shape[1:]
    assert not torch.equal(coarse.x[0], good.x[0])
    assert "2 images, 16.7% of all" in capsys.readouterr().err


def test_one_coarse_image_is_enough(tiny_photos: Path, good: PreparedImages, tmp_path: Path) -> None:
    scarred(tiny_photos / "good0.png", tmp_path / "bad.png")
    assert len(load(tmp_path, good)) == 1


def test_an_image_that_is_also_good_is_named_whatever_it_is_called(
    tiny_photos: Path, good: PreparedImages, tmp_path: Path
) -> None:
    scarred(tiny_photos / "good0.png", tmp_path / "bad.png")
    shutil.copy(tiny_photos / "good3.png", tmp_path / "defect.png")
    # The same pixels in another file format.
    cv2.imwrite(str(tmp_path / "good4.bmp"), read_image(tiny_photos / "good4.png"))
    with pytest.raises(DataError, match=r"2 of .* also among the good images: defect\.png = good3\.png, good4\.bmp"):
        load(tmp_path, good)


@pytest.mark.parametrize("what", ["missing", "file", "empty", "unreadable"])
def test_a_folder_without_images_is_refused(good: PreparedImages, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "coarse"
    if what == "file":
        folder.touch()
    elif what != "missing":
        folder.mkdir()
    if what == "unreadable":
        (folder / "a.png").write_bytes(b"\x89PNG no more")
    texts = {"missing": "does not exist", "file": "not a folder", "empty": "no images", "unreadable": "can be read"}
    with pytest.raises(DataError, match=texts[what]):
        load(folder, good)


def test_a_data_sets_own_anomalies_are_drawn_by_seed_to_a_twentieth(tmp_path: Path) -> None:
    def samples(count: int, label: int) -> tuple[Sample, ...]:
        return tuple(Sample(tmp_path / f"{label}_{number}.png", label, "any") for number in range(count))

    dataset = Dataset("any", "oct2017", tmp_path, samples(95, 0), coarse=samples(40, 1))
    drawn = coarse_samples(SPLIT, dataset, seed=0)
    assert len(drawn) == 5
    assert set(drawn) < set(dataset.coarse)
    assert drawn == coarse_samples(SPLIT, dataset, seed=0)
    assert drawn != coarse_samples(SPLIT, dataset, seed=1)
    few = Dataset("any", "oct2017", tmp_path, samples(3, 0), coarse=samples(2, 1))
    assert len(coarse_samples(SPLIT, few, seed=0)) == 1
    with pytest.raises(DataError, match="no anomalies in its training split"):
        coarse_samples(SPLIT, Dataset("any", "folder", tmp_path, samples(3, 0)), seed=0)
