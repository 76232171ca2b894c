"""From the bit mask to regions that a line can act on: boxes, areas and peaks in source-frame pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np

from edge.frames import F32, U8, Area, Roi
from edge.inspection.result import Region


def find_regions(
    mask: U8,
    anomaly_map: F32,
    roi: Roi,
    min_region_px: int = 0,
    pixel_size_mm: float | None = None,
    area: Area | None = None,
) -> list[Region]:
    """Return the connected regions (8-neighbourhood) of the mask, highest peak first.

    `mask` is uint8 `(H, W // 8)`, packed as `numpy.packbits` does, `anomaly_map` float32 `(H, W)`; `roi` is what was
    inspected of the source frame, and covers `area` of both, all of it where that is None.  Boxes are the
    smallest whole-pixel boxes that contain the region, areas are rounded to whole source pixels.  Regions of less than
    `min_region_px` source pixels are left out, except that the largest always stays: a defective part is never left
    without a region.
    """
    bits = np.unpackbits(mask, axis=1)
    if area is not None:
        top, left, high, wide = area
        frame = np.s_[top : top + high, left : left + wide]
        bits, anomaly_map = np.ascontiguousarray(bits[frame]), anomaly_map[frame]
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(bits, connectivity=8)
    height, width = bits.shape
    scale_x, scale_y = roi.width / width, roi.height / height

    regions = []
    for label in range(1, count):
        x, y, w, h, cells = (int(value) for value in stats[label])
        inside = labels[y : y + h, x : x + w] == label
        left, top = math.floor(x * scale_x), math.floor(y * scale_y)
        right = min(roi.width, math.ceil((x + w) * scale_x))
        bottom = min(roi.height, math.ceil((y + h) * scale_y))
        area_px = max(1, round(cells * scale_x * scale_y))
        centre_x, centre_y = (float(value) for value in centroids[label])
        regions.append(
            Region(
                bbox=(roi.x + left, roi.y + top, right - left, bottom - top),
                area_px=area_px,
                peak=float(anomaly_map[y : y + h, x : x + w][inside].max()),
                # Pixel centres lie at half-integers of the area that a pixel covers.
                centroid=(roi.x + (centre_x + 0.5) * scale_x - 0.5, roi.y + (centre_y + 0.5) * scale_y - 0.5),
                area_mm2=None if pixel_size_mm is None else area_px * pixel_size_mm**2,
            )
        )
    kept = [region for region in regions if region.area_px >= min_region_px]
    if regions and not kept:
        kept = [max(regions, key=lambda region: region.area_px)]
    return sorted(kept, key=lambda region: region.peak, reverse=True)
