"""Pictures of what was found: mask outlines, region boxes, verdict and score on the image; heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.frames import F32, U8
from edge.inspection.result import Region, Verdict

# BGR.
_BLACK = (0, 0, 0)
_WHITE = (255, 255, 255)
_OUTLINE = (0, 0, 255)
_BOX = (0, 200, 255)
VERDICT_COLOURS: dict[Verdict, tuple[int, int, int]] = {
    Verdict.OK: (60, 140, 40),
    Verdict.NG: (40, 40, 200),
    Verdict.LATE: (0, 120, 200),
    Verdict.FAULT: (140, 30, 140),
}


def draw_overlay(
    image: U8,
    verdict: Verdict,
    *,
    score: float | None = None,
    threshold: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    roi: tuple[int, int, int, int] | None = None,
    regions: Sequence[Region] = (),
) -> U8:
    """Return a copy of the image with mask outline and region boxes, under a band with the verdict.

    Args:
        image: `(H, W)` or `(H, W, 3)` BGR, uint8; it is not changed.
        verdict: gives the band's text and colour.
        score: image score; left out when None.
        threshold: the score's limit; left out when None.
        mask: of any size, `(h, w)`; it is stretched over the image, or over its part `roi`, `(x, y, width, height)`.
        roi: lies within the image.
        regions: in the image's pixels; what lies outside is drawn at the border.

    Returns:
        uint8 BGR `(band + H, W, 3)`: the text covers nothing of the image.
    """
    picture = _bgr(image)
    height, width = picture.shape[:2]
    thickness = max(1, round(min(height, width) / 300))
    # Clear of the region itself, and under the outline.
    margin = 2 * thickness + 2
    for region in regions:
        x, y, box_width, box_height = region.bbox
        first = (_clip(x - margin, width), _clip(y - margin, height))
        last = (_clip(x + box_width - 1 + margin, width), _clip(y + box_height - 1 + margin, height))
        cv2.rectangle(picture, first, last, _BLACK, thickness + 2)
        cv2.rectangle(picture, first, last, _BOX, thickness)
    if mask is not None and mask.any():
        stretched = over_frame(mask, (width, height), roi)
        contours, _ = cv2.findContours(stretched, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # A dark rim keeps the outline visible on red parts.
        cv2.drawContours(picture, contours, -1, _BLACK, thickness + 2)
        cv2.drawContours(picture, contours, -1, _OUTLINE, thickness)
    text = verdict.value.upper()
    if score is not None:
        text += f"  {score:.4g}" if threshold is None else f"  {score:.4g} / {threshold:.4g}"
    return np.concatenate((_band(text, width, VERDICT_COLOURS[verdict]), picture))


def over_frame(mask: NDArray[np.bool_], size: tuple[int, int], roi: tuple[int, int, int, int] | None) -> U8:
    """Return an event's mask as large as its frame of `size`, `(width, height)`: uint8 `(height, width)`, 0 or 1."""
    x, y, width, height = roi or (0, 0, *size)
    whole = np.zeros((size[1], size[0]), np.uint8)
    if width and height:
        stretched = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        whole[y : y + height, x : x + width] = stretched
    return whole


def heat_overlay(image: U8, anomaly_map: F32, ceiling: float, strength: float = 0.6) -> U8:
    """Return a copy of the image with the anomaly map as heat: none at 0, full colour from `ceiling` on.

    Args:
        image: `(H, W)` or `(H, W, 3)` BGR, uint8.
        anomaly_map: float32 `(h, w)`, stretched over the image; NaN shows as 0.
        ceiling: map value of the hottest colour, positive.
        strength: opacity of the hottest colour, 0 to 1.
    """
    if not ceiling > 0:
        raise ValueError(f"the ceiling of a heat map must be positive, not {ceiling}")
    picture = _bgr(image)
    height, width = picture.shape[:2]
    level = np.clip(np.nan_to_num(anomaly_map, posinf=ceiling) / ceiling, 0.0, 1.0).astype(np.float32)
    level = cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    opacity = (strength * level)[..., None]
    blended: U8 = np.rint(picture * (1 - opacity) + colours * opacity).astype(np.uint8)
    return blended


def _clip(at: int, size: int) -> int:
    return min(max(at, 0), size - 1)


def _bgr(image: U8) -> U8:
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def _band(text: str, width: int, colour: tuple[int, int, int]) -> U8:
    """Return a band `(h, width, 3)` with the text as large as fits."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), descent = cv2.getTextSize(text, font, 1.0, 2)
    scale = min(max(0.5, width / 900), 0.94 * width / text_width)
    thickness = max(1, round(scale * 2))
    margin = max(2, round(6 * scale))
    band = np.full((round((text_height + descent) * scale) + 2 * margin, width, 3), colour, np.uint8)
    origin = (round(0.03 * width), margin + round(text_height * scale))
    cv2.putText(band, text, origin, font, scale, _WHITE, thickness, cv2.LINE_AA)
    return band
