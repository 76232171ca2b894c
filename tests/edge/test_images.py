from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import FrameError
from edge.frames import U8
from edge.images import list_images, natural_sorted, read_image, write_png


@pytest.fixture
def picture() -> U8:
    """Smooth, so that JPEG keeps it, and without symmetry."""
    y, x = np.mgrid[0:48, 0:80].astype(np.float32)
    return np.dstack([x * 3, y * 5, (x + y) * 1.9]).astype(np.uint8)


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Put an EXIF segment with one tag, 0x0112, behind the JPEG's start marker."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


ORIENTATIONS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_obeyed(tmp_path: Path, picture: U8, orientation: int) -> None:
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(with_orientation(jpeg, orientation))
    image = read_image(tmp_path / "a.jpg")
    expected = ORIENTATIONS[orientation](picture)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 12


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_files_are_exact(tmp_path: Path, picture: U8, suffix: str) -> None:
    file = tmp_path / f"ä {suffix}"
    cv2.imencode(suffix, picture)[1].tofile(file)
    image = read_image(file)
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, picture)


def test_grey_becomes_three_equal_channels(tmp_path: Path, picture: U8) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., 1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.dstack([picture[..., 1]] * 3))


def test_16_bit_is_scaled_to_8(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert np.abs(image[..., 0] - wide / 257.0).max() <= 1


def test_transparency_is_dropped(tmp_path: Path, picture: U8) -> None:
    alpha = np.zeros(picture.shape[:2], np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([picture, alpha]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)


def test_palette_is_resolved(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1] * 4)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :2], [[30, 20, 10], [50, 100, 200]])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.1, 0.6, 0.98])
def test_truncated_files_are_named(tmp_path: Path, picture: U8, suffix: str, kept: float) -> None:
    data = cv2.imencode(suffix, picture)[1].tobytes()
    file = tmp_path / f"part{suffix}"
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(FrameError, match=f"part{suffix}"):
        read_image(file)


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"hello" * 50, "not an image")])
def test_foreign_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(FrameError, match=f"x.png.*{words}"):
        read_image(tmp_path / "x.png")


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FrameError, match="regular file"):
        read_image(tmp_path)


def test_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.PNG", "a.jpeg", "._b2.png", "notes.txt", "sub/1.tif", ".git/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b2.PNG", "b10.png"]
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, recursive=True)]
    assert found == ["a.jpeg", "b2.PNG", "b10.png", "sub/1.tif"]


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_numbers_sort_by_value(numbers: list[int]) -> None:
    paths = [Path("run7") / f"part{number}_x.png" for number in numbers]
    assert natural_sorted(paths) == [Path("run7") / f"part{number}_x.png" for number in sorted(numbers)]


@given(st.lists(st.text("aB1²٣_-", min_size=1, max_size=6)))
def test_any_names_can_be_sorted_and_the_order_is_total(names: list[str]) -> None:
    paths = [Path(name) for name in names]
    assert natural_sorted(paths) == natural_sorted(reversed(paths))
    assert sorted(map(str, natural_sorted(paths))) == sorted(names)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FrameError, match=r"pipe\.png: not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_a_picture_is_written_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    write_png(tmp_path / "x.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), image)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_png(tmp_path / "y.png", image)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
