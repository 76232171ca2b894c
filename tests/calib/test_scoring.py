from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from calib.scoring import score_images
from edge.bundle import Bundle
from edge.manifest import CanvasSpec
from tests.tiny_bundle import write_tiny_bundle


def test_padding_lends_no_pixels_to_the_pixel_threshold(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", canvas=CanvasSpec("pad", 2, 2, 32))
    paths = []
    for index in range(4):
        # 96 x 80 pixels fill 96 x 80 of the canvas, 40 x 80 half of that.
        image = tiny.product.good(index)[:, : 96 if index % 2 else 40]
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), image)
    with Bundle.open(tiny.path) as bundle:
        good = score_images(bundle, paths, 0.01)
    expected = [int(np.count_nonzero(tiny.anomaly_map(cv2.imread(str(path))))) for path in paths]
    assert expected == [48 * 96, 96 * 80] * 2
    assert good.pixels == np.mean(expected)
    # With this rate, every pixel of the frame is kept, and none beside it.
    assert [tail.size for tail in good.tails] == expected
    assert all((tail > 0).all() for tail in good.tails)
