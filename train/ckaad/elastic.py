"""Pseudo-anomalies: good images bent out of shape."""

from __future__ import annotations

import cv2
import numpy as np

from edge.frames import F32

#: Strength of the transformation.
ALPHA = 200.0

#: Deviation, in pixels, of the Gaussian that makes neighbouring displacements alike.
SIGMA = 5.0


def elastic(image: F32, rng: np.random.Generator, alpha: float = ALPHA, sigma: float = SIGMA) -> F32:
    """Bend an image `(C, H, W)` elastically (Simard et al. 2003) and return the new one; borders are mirrored.

    Every pixel is fetched from `alpha / 2` times a smooth noise away, uniform on -1 to 1 before it is smoothed: at the
    defaults 3 pixels off as a rule, 10 or so at most.
    """
    height, width = image.shape[1:]
    places = np.indices((height, width), dtype=np.float32)
    for axis in places:
        noise = rng.uniform(-1, 1, (height, width)).astype(np.float32)
        axis += alpha / 2 * cv2.GaussianBlur(noise, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    bent = np.empty_like(image)
    for channel, out in zip(image, bent, strict=True):
        cv2.remap(channel, places[1], places[0], cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REFLECT_101)
    return bent
