"""Golden frames: a few images whose scores every runtime must reproduce."""

from __future__ import annotations

import cv2
import numpy as np

from edge.frames import U8

#: Larger images are shrunk to this side first: a golden frame pins arithmetic, not optics.
GOLDEN_SIDE = 512


def golden_images(images: list[U8]) -> list[tuple[str, U8]]:
    """From a few good BGR images, return them and as many altered ones, named, so that high scores are pinned too.

    Each altered image has a dark disc and a bright scratch, at a place that depends on its position in the list only.
    """
    golden = []
    for place, image in enumerate(images):
        height, width = image.shape[:2]
        scale = GOLDEN_SIDE / max(height, width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            height, width = image.shape[:2]
        altered = image.copy()
        rng = np.random.default_rng(place)
        x, y = (int(rng.uniform(0.3, 0.7) * side) for side in (width, height))
        cv2.circle(altered, (x, y), max(2, min(width, height) // 16), (25, 30, 35), -1, cv2.LINE_AA)
        end = (int(rng.uniform(0.2, 0.8) * width), int(rng.uniform(0.2, 0.8) * height))
        cv2.line(altered, (width - x, y), end, (235, 240, 245), max(1, width // 128), cv2.LINE_AA)
        golden += [(f"good_{place}", image), (f"altered_{place}", altered)]
    return golden
