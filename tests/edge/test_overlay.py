from __future__ import annotations

import numpy as np
import pytest

from edge.inspection.result import Region, Verdict
from edge.overlay import VERDICT_COLOURS, draw_overlay, heat_overlay


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(60, 90, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (240, 320), (600, 900), (64, 1024), (1024, 64)])
def test_the_image_is_whole_under_the_band(shape: tuple[int, int]) -> None:
    image = photo(*shape)
    before = image.copy()
    picture = draw_overlay(image, Verdict.OK, score=0.123456, threshold=1.5)
    band = picture.shape[0] - shape[0]
    assert band > 0
    assert picture.shape[1:] == (shape[1], 3)
    assert np.array_equal(picture[band:], image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_band_has_the_verdicts_colour_and_a_text_inside_it(verdict: Verdict) -> None:
    picture = draw_overlay(photo(300, 300), verdict, score=1.0)
    band = picture[: picture.shape[0] - 300]
    background = (band == VERDICT_COLOURS[verdict]).all(axis=2)
    assert background.mean() > 0.5
    assert not background.all()
    assert background[0].all()
    assert background[-1].all()
    assert background[:, 0].all()
    assert background[:, -1].all()


def test_only_the_outline_of_the_mask_is_drawn() -> None:
    image = photo(400, 400)
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    changed = (draw_overlay(image, Verdict.NG, mask=mask)[-400:] != image).any(axis=2)
    assert changed[100, 100:300].all()
    assert changed[100:300, 299].all()
    assert not changed[120:280, 120:280].any()
    assert not changed[:90].any()


def test_boxes_surround_the_regions_and_cover_nothing_of_them() -> None:
    image = photo(200, 300)
    region = Region(bbox=(50, 60, 100, 40), area_px=1, peak=1.0, centroid=(0.0, 0.0))
    changed = (draw_overlay(image, Verdict.NG, regions=[region])[-200:] != image).any(axis=2)
    assert not changed[60:100, 50:150].any()
    rows, columns = np.nonzero(changed)
    assert 60 - 8 <= rows.min() < 60
    assert 100 <= rows.max() < 100 + 8
    assert 50 - 8 <= columns.min() < 50
    assert 150 <= columns.max() < 150 + 8
    assert changed[rows.min(), 50:150].all()
    assert changed[60:100, columns.max()].all()


def test_regions_outside_the_image_do_no_harm() -> None:
    wild = Region(bbox=(-(2**62), 2**62, 2**62, 2**62), area_px=1, peak=1.0, centroid=(0.0, 0.0))
    assert draw_overlay(photo(50, 60), Verdict.NG, regions=[wild]).shape[1:] == (60, 3)


def test_grey_images() -> None:
    grey = photo(80, 90)[..., 0]
    picture = draw_overlay(grey, Verdict.FAULT)
    assert (picture[-80:] == grey[..., None]).all()
    assert heat_overlay(grey, np.zeros((8, 9), np.float32), 1.0).shape == (80, 90, 3)


def test_heat_colours_only_what_is_anomalous() -> None:
    image = photo(80, 80)
    heat = np.zeros((8, 8), np.float32)
    heat[5:, 5:] = 9.0
    heat[0, 0] = np.nan
    picture = heat_overlay(image, heat, ceiling=2.0)
    assert np.array_equal(picture[:40, :40], image[:40, :40])
    # The hot end is red.
    assert picture[70, 70, 2] > picture[70, 70, 0] + 30
    assert np.array_equal(picture[60:, 60:], heat_overlay(image, np.minimum(heat, 2.0), 2.0)[60:, 60:])


def test_heat_needs_a_ceiling() -> None:
    with pytest.raises(ValueError, match="ceiling"):
        heat_overlay(photo(8, 8), np.zeros((8, 8), np.float32), 0.0)
