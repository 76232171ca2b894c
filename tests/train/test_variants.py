from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.frames import F32
from edge.inspection.native import Preprocessor
from edge.manifest import InputSpec, MapSpec
from train import variants
from train.backbones import ResNet18
from train.featurecache import FEATURE_CACHE_BYTES
from train.prepared import PreparedImages
from train.variants import TRANSFORMS, admissible, turn, with_variants

SIZE = InputSpec(height=64, width=64)
MAP = MapSpec()


def prepared(x: F32, tiles: int = 1) -> PreparedImages:
    """Images whose maps and descriptors are the kernels' own."""
    kernels = Preprocessor(SIZE, MAP)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (SIZE.mean, SIZE.std))
    h, descriptors = [], []
    for image in x:
        kernels.grey[:] = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image * std + mean, 1)
        h.append(np.empty(kernels.map_shape, np.float32))
        descriptors.append(np.empty(kernels.descriptor_size, np.float32))
        kernels.describe(h[-1], descriptors[-1])
    count = len(x) // tiles
    names = [f"{number}.png" for number in range(count)]
    device = torch.device("cpu")
    return PreparedImages(
        torch.from_numpy(x).half(), torch.from_numpy(np.stack(h)), np.stack(descriptors), names, names, device, tiles
    )


def textures(count: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 0.5, (count, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_turning_moves_pixels_and_changes_none(transform: str) -> None:
    x = textures(1)[0]
    turned = turn(x, transform)
    assert not np.array_equal(turned, x)
    np.testing.assert_array_equal(np.sort(turned, axis=None), np.sort(x, axis=None))
    back = {"rotated-90": "rotated-270", "rotated-270": "rotated-90"}.get(transform, transform)
    np.testing.assert_array_equal(turn(turned, back), x)


def test_rows_are_all_images_as_they_are_then_copies_of_each() -> None:
    images = prepared(textures(6), tiles=2)
    varied = with_variants(images, SIZE, MAP, ("mirrored",), True, seed=1)
    assert varied.blocks[0] == ""
    assert set(varied.blocks[1:]) == {"turned", "altered"}
    assert len(varied) == 6 * len(varied.blocks)
    torch.testing.assert_close(varied.x[:6], images.x)
    np.testing.assert_array_equal(varied.origins[:6], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(varied.origins, np.tile(varied.origins[:6], len(varied.blocks)))
    assert varied.row_name(1) == "0.png#1"
    assert varied.row_name(7) == f"0.png#1 ({varied.blocks[1]})"


def test_altered_rows_keep_the_image_change_its_map_and_never_prompt() -> None:
    images = prepared(textures(5))
    varied = with_variants(images, SIZE, MAP, (), True, seed=0)
    assert set(varied.blocks[1:]) == {"altered"}
    np.testing.assert_array_equal(varied.plain, np.arange(5))
    for row in range(5, len(varied)):
        source = row % 5
        torch.testing.assert_close(varied.x[row], images.x[source])
        assert float((varied.h[row] - images.h[source]).abs().max()) > 0.01
        # Rounding X to fp16 first is all that separates the two descriptors.
        np.testing.assert_allclose(varied.descriptors[row], images.descriptors[source], atol=2e-3)


def test_turned_rows_have_the_map_and_descriptor_of_the_turned_image() -> None:
    images = prepared(textures(3))
    varied = with_variants(images, SIZE, MAP, ("flipped",), False, seed=0)
    assert set(varied.blocks[1:]) == {"turned"}
    expected = prepared(np.ascontiguousarray(images.x.float().numpy()[..., ::-1, :]))
    np.testing.assert_array_equal(varied.plain, np.arange(len(varied)))
    for row in range(3, len(varied)):
        torch.testing.assert_close(varied.x[row], expected.x[row % 3])
        torch.testing.assert_close(varied.h[row], expected.h[row % 3], atol=1e-5, rtol=0)
        np.testing.assert_allclose(varied.descriptors[row], expected.descriptors[row % 3], atol=1e-5)


def test_the_same_seed_gives_the_same_rows() -> None:
    images = prepared(textures(4))
    one, same, other = (with_variants(images, SIZE, MAP, TRANSFORMS, True, seed) for seed in (3, 3, 4))
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.h, same.h)
    assert not torch.equal(one.h, other.h)


def test_nothing_asked_for_is_nothing_done() -> None:
    images = prepared(textures(3))
    assert with_variants(images, SIZE, MAP, (), False, seed=0) is images


def test_copies_stop_where_features_would_outgrow_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = prepared(textures(4))
    per_row = 2 * 2 * sum(channels * 64 * 64 // stride**2 for channels, stride in ((64, 4), (128, 8), (256, 16)))
    assert per_row * 4 * 6 < FEATURE_CACHE_BYTES
    monkeypatch.setattr(variants, "FEATURE_CACHE_BYTES", per_row * 4 * 3)
    assert len(with_variants(images, SIZE, MAP, ("mirrored",), True, seed=0).blocks) == 3
    # One copy always: without it nothing teaches recovery to mend.
    monkeypatch.setattr(variants, "FEATURE_CACHE_BYTES", 1)
    assert len(with_variants(images, SIZE, MAP, ("mirrored",), True, seed=0).blocks) == 2


def test_a_product_may_be_turned_as_far_as_it_is_symmetric() -> None:
    torch.manual_seed(0)
    phi = ResNet18().eval()
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (12, 3, 64, 64)).astype(np.float32)
    # Upright stripes of mirrored order: mirroring and half a turn keep them, a quarter turn does not.
    stripes = np.zeros((3, 64, 64), np.float32)
    stripes[:, :, 12:20] = stripes[:, :, 44:52] = 2.0
    found = admissible(prepared(stripes + noise), phi)
    assert set(found) == {"mirrored", "flipped", "rotated-180"}
    # A mark in one corner: no transform at all.
    stripes[:, :24, :24] = -3.0
    assert admissible(prepared(stripes + noise), phi) == ()


def test_transforms_that_swap_the_sides_need_square_inputs() -> None:
    torch.manual_seed(0)
    phi = ResNet18().eval()
    images = prepared(textures(4))
    wide = PreparedImages(images.x[:, :, :32], images.h, images.descriptors, images.names, images.digests)
    assert not {"rotated-90", "rotated-270"} & set(admissible(wide, phi))


def test_one_image_alone_says_nothing_about_symmetry() -> None:
    torch.manual_seed(0)
    assert admissible(prepared(textures(1)), ResNet18().eval()) == ()
