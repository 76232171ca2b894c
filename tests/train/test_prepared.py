from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edge.frames import PixelFormat, aligned_f32
from edge.images import pixel_digest, read_image
from edge.inspection.native import Preprocessor
from edge.manifest import CanvasSpec, InputSpec, MapSpec
from train.datasets import open_dataset
from train.prepared import prepare

SIZE = InputSpec(height=64, width=64)


def test_rows_are_tiles_as_the_station_cuts_them(tiny_photos: Path) -> None:
    samples = open_dataset(tiny_photos).train[:3]
    spec = CanvasSpec("pad", 2, 3, 32)
    images = prepare(samples, SIZE, MapSpec(), torch.device("cpu"), spec)
    assert (len(images), images.tiles) == (18, 6)
    assert images.origins.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert images.x.shape == (18, 3, 64, 64)
    assert images.x.dtype is torch.float16
    assert [len(images.names), len(images.digests)] == [3, 3]
    assert images.row_name(7) == f"{samples[1].path.name}#1"
    station = Preprocessor(SIZE, MapSpec(), spec)
    x, h = aligned_f32(3, 64, 64), aligned_f32(*station.map_shape)
    descriptor = aligned_f32(station.descriptor_size)
    for row in (0, 7, 17):
        image = read_image(samples[row // 6].path)
        station(image, PixelFormat.BGR8, x, h, descriptor, row % 6)
        np.testing.assert_array_equal(images.x[row].numpy(), x.astype(np.float16))
        np.testing.assert_array_equal(images.h[row].numpy(), h)
        np.testing.assert_array_equal(images.descriptors[row], descriptor)
        assert images.digests[row // 6] == pixel_digest(image)


def test_one_tile_is_one_image(tiny_photos: Path) -> None:
    samples = open_dataset(tiny_photos).train[:3]
    images = prepare(samples, SIZE, MapSpec(), torch.device("cpu"))
    assert len(images) == len(images.names) == 3
    assert images.row_name(2) == samples[2].path.name
    assert images.origins.tolist() == [0, 1, 2]


def test_an_unreadable_image_leaves_no_row(tiny_photos: Path, tmp_path: Path) -> None:
    for path in sorted(tiny_photos.iterdir())[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = sorted(tmp_path.iterdir())[1]
    broken.write_bytes(b"no image")
    images = prepare(open_dataset(tmp_path).train, SIZE, MapSpec(), torch.device("cpu"), CanvasSpec(rows=2))
    assert (len(images), images.x.shape[0], images.h.shape[0]) == (4, 4, 4)
    assert broken.name not in images.names
