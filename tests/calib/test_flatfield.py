from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.flatfield import flat_field
from edge.errors import CalibrationError
from edge.manifest import GAIN_ONE


def photographs(folder: Path, *images: np.ndarray) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    return paths


def test_the_gain_makes_the_surface_even(tmp_path: Path) -> None:
    light = 60 + 150 * np.linspace(0, 1, 90) * np.ones((40, 1))
    noise = np.random.default_rng(0).normal(0, 2, (16, 40, 90))
    images = np.rint(light + noise).clip(0, 255).astype(np.uint8)
    gain = flat_field(photographs(tmp_path, *images))
    assert gain.dtype == np.uint16
    assert gain.shape == (40, 90)
    even = images.mean(axis=0) * gain / GAIN_ONE
    np.testing.assert_allclose(even, np.median(images.mean(axis=0)), rtol=1e-3)
    # Brighter light, the same gain.
    brighter = flat_field(photographs(tmp_path, np.rint(light * 1.15).astype(np.uint8)))
    np.testing.assert_allclose(brighter, gain, rtol=0.05)


@pytest.mark.parametrize(("level", "words"), [(10, "too dark at 7, 3"), (255, "too bright at 7, 3")])
def test_too_dark_or_too_bright_anywhere(tmp_path: Path, level: int, words: str) -> None:
    image = np.full((20, 30), 120, np.uint8)
    image[3, 7] = level
    with pytest.raises(CalibrationError, match=words):
        flat_field(photographs(tmp_path, image))


def test_photographs_of_two_sizes_or_none(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="31 x 20 pixels, the others 30 x 20"):
        flat_field(photographs(tmp_path, np.full((20, 30), 99, np.uint8), np.full((20, 31), 99, np.uint8)))
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"1\.png"):
        flat_field([tmp_path / "0.png", tmp_path / "1.png"])
