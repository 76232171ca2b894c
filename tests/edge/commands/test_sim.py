from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.cameras.sim import SimLine
from edge.commands.sim import TEST_START, TRAIN_START, main
from edge.images import list_images, read_image

SMALL = ["--width", "64", "--height", "64"]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_in_mvtec_layout(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "set"
    assert (
        main([str(out), "--train", "5", "--test", "16", "--good", "3", "--defects", "0.5", "--seed", "9", *SMALL]) == 0
    )
    line = SimLine(9, 64, 64)
    # Eight defects take turns over the seven kinds.
    expected = {f"train/good/{n:03d}.png" for n in range(5)} | {f"good/{n:03d}.png" for n in range(3)}
    expected |= {f"test/good/{n:03d}.png" for n in range(8)} | {"test/scratch/001.png"}
    expected |= {f"test/{kind}/000.png" for kind in line.kinds}
    masks = {f"ground_truth/{kind}/000_mask.png" for kind in line.kinds} | {"ground_truth/scratch/001_mask.png"}
    files = tree(out)
    assert set(files) == expected | masks
    assert {path.name for path in tmp_path.glob("deep/*")} == {"set"}

    images = [read_image(out / name) for name in expected]
    camera = SimLine(9, 64, 64, 0.0)
    images += [camera.part(index).image for index in range(16)]
    assert len({image.tobytes() for image in images}) == len(images), "no part is in two sets"

    for place, kind in enumerate((*line.kinds, "scratch")):
        number = place // len(line.kinds)
        part = line.part(TEST_START + place, kind)
        mask = cv2.imread(str(out / f"ground_truth/{kind}/{number:03d}_mask.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, part.mask.astype(np.uint8) * 255)
        np.testing.assert_array_equal(read_image(out / f"test/{kind}/{number:03d}.png"), part.image)
        assert mask.any()


def test_without_good_parts_there_is_no_such_folder(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--train", "1", "--test", "1", "--good", "0", "--defects", "0", *SMALL]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_a_folder_in_use_is_left_alone_unless_forced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--train", "2", "--test", "0", "--good", "0", *SMALL]
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "old.png").write_text("old")
    before = tree(tmp_path)
    assert main([str(tmp_path), *few]) == 7
    assert "not empty" in capfd.readouterr().err
    assert tree(tmp_path) == before
    assert main([str(tmp_path), *few, "--force"]) == 0
    assert set(tree(tmp_path)) == {"notes.txt", "train/good/000.png", "train/good/001.png"}
    assert len(list_images(tmp_path, recursive=True)) == 2


def test_parts_lie_as_far_turned_as_asked_for(tmp_path: Path) -> None:
    few = ["--train", "3", "--test", "0", "--good", "0", *SMALL]
    assert main([str(tmp_path / "turned"), *few, "--rotation", "180"]) == 0
    line = SimLine(0, 64, 64, rotation_deg=180)
    for number in range(3):
        image = read_image(tmp_path / "turned" / f"train/good/{number:03d}.png")
        np.testing.assert_array_equal(image, line.part(TRAIN_START + number, "good").image)
        assert (image != SimLine(0, 64, 64).part(TRAIN_START + number, "good").image).any()


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (["--train", "-1"], 2),
        (["--train", "0", "--test", "0", "--good", "0"], 2),
        (["--defects", "2"], 2),
        (["--seed", "-4"], 2),
        (["--rotation", "181"], 2),
        (["--rotation", "nan"], 2),
        (["--width", "20"], 2),
        (["--height", "1000000"], 2),
    ],
)
def test_senseless_arguments(tmp_path: Path, extra: list[str], code: int) -> None:
    assert main([str(tmp_path / "out"), *extra]) == code
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file"), *SMALL]) == 7
    assert main([str(tmp_path / "file" / "below"), *SMALL]) == 7
    error = capfd.readouterr().err
    assert error.count("error") == 2
    assert "Traceback" not in error
