from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge.errors import DataError
from tests.train.datasets.trees import image, mask
from train.datasets import Sample, load_images, load_mask, open_dataset
from train.datasets.base import read_mask

RNG = np.random.default_rng(6)


def test_every_kind_of_image_file_loads_as_bgr(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (10, 12), np.uint8)
    colour = RNG.integers(0, 256, (10, 12, 3), np.uint8)
    Image.fromarray(grey).save(tmp_path / "1_grey.png")
    Image.fromarray(colour).save(tmp_path / "2_rgb.PNG")
    alpha = np.dstack([colour, np.full((10, 12), 128, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "3_rgba.png")
    cv2.imwrite(str(tmp_path / "4_deep.tif"), grey.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colour).save(tmp_path / "5_rotated.JPG", exif=exif)
    image(tmp_path / "6_large.bmp", (40, 30))
    dataset = open_dataset(tmp_path)
    loaded = {sample.path.name: pixels for sample, pixels in load_images(dataset.train)}
    assert list(loaded) == sorted(loaded)
    shapes = [(10, 12, 3)] * 4 + [(12, 10, 3), (30, 40, 3)]
    assert [pixels.shape for pixels in loaded.values()] == shapes
    assert all(pixels.dtype == np.uint8 for pixels in loaded.values())
    np.testing.assert_array_equal(loaded["1_grey.png"], np.dstack([grey] * 3))
    np.testing.assert_array_equal(loaded["2_rgb.PNG"], colour[:, :, ::-1])
    np.testing.assert_array_equal(loaded["3_rgba.png"], colour[:, :, ::-1])
    np.testing.assert_allclose(loaded["4_deep.tif"], np.dstack([grey] * 3), atol=1)


def test_unreadable_images_are_named_counted_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        image(tmp_path / f"{number}.png")
    (tmp_path / "[b]roken.png").write_bytes(b"not an image")
    (tmp_path / "empty.png").touch()
    skipped: list[Path] = []
    loaded = [sample.path.name for sample, _ in load_images(open_dataset(tmp_path).train, skipped=skipped)]
    assert loaded == ["0.png", "1.png", "2.png"]
    assert [path.name for path in skipped] == ["[b]roken.png", "empty.png"]
    assert "2 images could not be read: [b]roken.png, empty.png" in capsys.readouterr().err


def test_all_unreadable_is_an_error_and_a_long_list_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(7):
        (tmp_path / f"{number}.png").touch()
    samples = open_dataset(tmp_path).train
    with pytest.raises(DataError, match="none of the 7 images"):
        list(load_images(samples))
    image(tmp_path / "0.png")
    assert len(list(load_images(samples))) == 1
    assert "5.png and 1 more" in capsys.readouterr().err
    assert list(load_images([])) == []


# Masks


def test_mask_is_resized_by_nearest(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0:4, 4:8] = 1
    Image.fromarray(pixels).save(tmp_path / "m.png")
    sample = Sample(tmp_path / "i.png", 1, "dent", tmp_path / "m.png")
    same = load_mask(sample, (8, 8), image_shape=(8, 8, 3))
    np.testing.assert_array_equal(same, pixels > 0)
    half = load_mask(sample, (4, 4), image_shape=(16, 16, 3))
    np.testing.assert_array_equal(half, np.pad(np.ones((2, 2), bool), ((0, 2), (2, 0))))
    wide = load_mask(sample, (8, 16))
    assert wide is not None
    np.testing.assert_array_equal(wide, np.repeat(pixels > 0, 2, axis=1))


def test_masks_of_good_and_unmarked_samples(tmp_path: Path) -> None:
    good = load_mask(Sample(tmp_path / "i.png", 0, "good"), (3, 5))
    assert good is not None
    assert (good.shape, good.dtype, good.any()) == ((3, 5), np.bool_, False)
    assert load_mask(Sample(tmp_path / "i.png", 1, "dent"), (3, 5)) is None


def test_mask_of_another_aspect_names_both(tmp_path: Path) -> None:
    mask(tmp_path / "m.png", (12, 10))
    sample = Sample(tmp_path / "i.png", 1, "dent", tmp_path / "m.png")
    with pytest.raises(DataError) as caught:
        load_mask(sample, (8, 8), image_shape=(12, 10, 3))
    for part in ("m.png", "i.png", "12×10", "10×12"):
        assert part in caught.value.problem
    # Half a pixel lost when the image was halved is no other aspect.
    mask(tmp_path / "m.png", (451, 300))
    assert load_mask(sample, (8, 8), image_shape=(599, 901, 3)) is not None


def grey_mask() -> NDArray[np.uint8]:
    pixels = np.zeros((6, 9), np.uint8)
    pixels[1, 2], pixels[4, 7] = 1, 255
    return pixels


@pytest.mark.parametrize("form", ["grey", "rgb", "rgba", "grey_alpha", "palette", "bilevel", "deep", "bmp"])
def test_any_non_zero_sample_is_a_defect(tmp_path: Path, form: str) -> None:
    pixels = grey_mask()
    path = tmp_path / ("m.bmp" if form == "bmp" else "m.png")
    opaque = np.full_like(pixels, 255)
    if form == "rgb":
        Image.fromarray(np.dstack([pixels, pixels * 0, pixels * 0])).save(path)
    elif form == "rgba":
        Image.fromarray(np.dstack([pixels, pixels, pixels, opaque])).save(path)
    elif form == "grey_alpha":
        Image.fromarray(np.dstack([pixels, opaque]), "LA").save(path)
    elif form == "palette":
        palette = Image.fromarray((pixels > 0).astype(np.uint8), "P")
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.save(path)
    elif form == "bilevel":
        Image.fromarray(pixels > 0).save(path)
    elif form == "deep":
        cv2.imwrite(str(path), pixels.astype(np.uint16))
    else:
        Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_mask(path), pixels > 0)


def test_bad_mask_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png"):
        read_mask(tmp_path / "absent.png")
    for content in (b"", b"not an image"):
        (tmp_path / "m.png").write_bytes(content)
        with pytest.raises(DataError, match=r"m\.png cannot be read"):
            read_mask(tmp_path / "m.png")
    Image.fromarray(grey_mask()).save(tmp_path / "m.jpg")
    with pytest.raises(DataError, match="JPEG"):
        read_mask(tmp_path / "m.jpg")


# Digest


def test_digest_depends_on_training_names_and_bytes_only(tmp_path: Path) -> None:
    for name in ("train/good/000.png", "train/good/001.png", "test/dent/000.png"):
        image(tmp_path / "a" / name)
    before = open_dataset(tmp_path / "a").digest()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_dataset(tmp_path / "b").digest() == before
    image(tmp_path / "b/test/dent/009.png")
    assert open_dataset(tmp_path / "b").digest() == before
    (tmp_path / "b/train/good/000.png").rename(tmp_path / "b/train/good/007.png")
    assert open_dataset(tmp_path / "b").digest() != before
    image(tmp_path / "a/train/good/001.png", value=9)
    assert open_dataset(tmp_path / "a").digest() != before


def test_digest_by_hand(tmp_path: Path) -> None:
    for name, content in (("b.png", b"one"), ("a.png", b"three")):
        (tmp_path / name).write_bytes(content)
    text = "".join(
        f"{name}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("a.png", b"three"), ("b.png", b"one"))
    )
    dataset = open_dataset(tmp_path)
    assert dataset.digest() == hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        dataset.digest()
