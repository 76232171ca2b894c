from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge.cameras.sim import VISIBLE_LEVELS, SimLine
from edge.cameras.sim_products import PRODUCTS

KINDS = [(product, kind) for product in PRODUCTS for kind in SimLine(width=64, height=64, product=product).kinds]


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_part_depends_on_seed_and_index_alone(product: str) -> None:
    line = SimLine(seed=3, width=160, height=128, product=product, defect_rate=0.5)
    forth = [line.part(index) for index in range(8)]
    again = SimLine(seed=3, width=160, height=128, product=product, defect_rate=0.5)
    for index in reversed(range(8)):
        part = again.part(index)
        np.testing.assert_array_equal(part.image, forth[index].image)
        np.testing.assert_array_equal(part.mask, forth[index].mask)
        assert part.kind == forth[index].kind == again.kind(index)


def test_parts_and_seeds_differ() -> None:
    images = [SimLine(seed, 96, 96, 0.0).part(index).image for seed in range(3) for index in range(3)]
    assert len({image.tobytes() for image in images}) == 9


@pytest.mark.parametrize("product", PRODUCTS)
def test_rendering_gives_the_same_image_in_place(product: str) -> None:
    line = SimLine(seed=1, width=120, height=96, product=product, defect_rate=0.6)
    out = np.zeros((96, 120, 3), np.uint8)
    for index in range(10):
        line.render(index, out)
        np.testing.assert_array_equal(out, line.part(index).image)


def test_good_parts_do_not_change_with_the_defect_rate() -> None:
    never, often = SimLine(2, 96, 96, 0.0), SimLine(2, 96, 96, 0.7)
    good = [index for index in range(30) if often.kind(index) == "good"]
    assert 0 < len(good) < 30
    for index in good:
        np.testing.assert_array_equal(never.part(index).image, often.part(index).image)


def test_the_defect_rate_is_kept_and_every_kind_comes() -> None:
    line = SimLine(seed=0, width=64, height=64, defect_rate=0.3)
    kinds = [line.kind(index) for index in range(2000)]
    # Five standard deviations of a binomial.
    assert abs(sum(kind != "good" for kind in kinds) - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5
    assert set(kinds) == {"good", *line.kinds}
    assert {SimLine(width=64, height=64, defect_rate=rate).kind(5) == "good" for rate in (0.0, 1.0)} == {True, False}


@pytest.mark.parametrize(("product", "kind"), KINDS)
def test_the_mask_is_where_the_defect_changed_the_image(product: str, kind: str) -> None:
    """Part and good twin share pose, light and noise, so that their images differ by the defect alone."""
    line = SimLine(seed=4, product=product)
    for index in range(3):
        good, bad = line.part(index, "good"), line.part(index, kind)
        assert (good.kind, bad.kind) == ("good", kind)
        assert not good.mask.any()
        assert bad.mask.dtype == np.bool_
        assert bad.mask.shape == (320, 320)
        change = np.abs(bad.image.astype(int) - good.image).max(axis=2)
        # Rounding and saturation of the noisy images account for one level.
        assert (change[~bad.mask] <= VISIBLE_LEVELS + 1).all()
        assert 10 <= bad.mask.sum() < 0.1 * bad.mask.size
        assert np.mean(change[bad.mask] >= VISIBLE_LEVELS - 1) > 0.6


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("size", [(64, 64), (300, 96)])
def test_defects_show_at_every_frame_size(product: str, size: tuple[int, int]) -> None:
    line = SimLine(5, *size, product=product)
    for kind in line.kinds:
        assert all(line.part(index, kind).mask.any() for index in range(6)), kind


@pytest.mark.parametrize("product", PRODUCTS)
def test_pose_and_light_change_within_the_stated_range(product: str) -> None:
    line = SimLine(seed=6, product=product, defect_rate=0.0)
    parts = np.stack([line.part(index).image for index in range(24)])
    brightness = parts.mean(axis=(1, 2, 3))
    assert 1.1 < brightness.max() / brightness.min() < 1.12 / 0.88 * 1.05
    warmth = parts[..., 2].mean(axis=(1, 2)) / parts[..., 0].mean(axis=(1, 2))
    assert 1.04 < warmth.max() / warmth.min() < (1.03 / 0.97) ** 2 * 1.01
    # The part is much brighter than the belt; its centre of gravity follows the shift.
    centres = []
    for image in parts:
        moments = cv2.moments((cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) > 90).astype(np.uint8), binaryImage=True)
        centres.append((moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]))
    spread = np.abs(np.array(centres) - 159.5).max(axis=0)
    assert (spread > 3).all()
    assert (spread < 0.03 * 320 + 4).all()


def test_a_part_may_lie_in_any_rotation() -> None:
    upright, any_way = SimLine(rotation_deg=0), SimLine(rotation_deg=180)
    angles = []
    for index in range(40):
        pose = any_way._scene(np.random.default_rng(index)).pose
        angles.append(np.degrees(np.arctan2(pose[0, 1], pose[0, 0])))
        pose = upright._scene(np.random.default_rng(index)).pose
        assert (pose[0, 0], pose[0, 1]) == (1, 0)
    assert np.ptp(angles) > 300


@pytest.mark.parametrize(
    "wrong",
    [
        {"product": "cube"},
        {"seed": -1},
        {"width": 63},
        {"defect_rate": 1.5},
        {"defect_rate": float("nan")},
        {"rotation_deg": 181},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        SimLine(**{"width": 64, "height": 64, **wrong})


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="missing_hole"):
        SimLine(width=64, height=64).part(0, "dog")
