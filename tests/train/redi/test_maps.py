from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.feature import canny, local_binary_pattern

from edge.frames import PixelFormat, aligned_f32
from edge.inspection.native import Preprocessor
from edge.manifest import MAP_KINDS, InputSpec, MapSpec
from tests.train.redi.graphs import run_graph
from train.redi.maps import Canny, LocalBinaryPatterns, LowPass, make_map, map_channels

MADE = [kind for kind in MAP_KINDS if kind != "hog"]
SIZE = InputSpec(height=96, width=128)


def photo(seed: int = 0) -> np.ndarray:
    """A BGR picture with shapes, shading, a flat saturated corner and sensor noise, uint8 `(96, 128, 3)`."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[0:96, 0:128]
    image = np.stack([90 + 40 * np.sin(xs / 17 + c) + 30 * np.cos(ys / (11 + c)) for c in range(3)], axis=2)
    for _ in range(4):
        x, y = int(rng.integers(20, 108)), int(rng.integers(20, 76))
        colour = rng.integers(0, 255, 3).tolist()
        cv2.ellipse(image, (x, y), (18, 10), float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    image += rng.normal(0, 4, image.shape)
    image[:24, :24] = 255
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def prepared(image: np.ndarray, spec: InputSpec = SIZE) -> tuple[torch.Tensor, np.ndarray]:
    """Network input, batch 1, and the grey plane, both from the native kernels."""
    kernels = Preprocessor(spec, MapSpec())
    x, h = aligned_f32(3, spec.height, spec.width), aligned_f32(*kernels.map_shape)
    kernels(image, PixelFormat.BGR8, x, h, aligned_f32(kernels.descriptor_size))
    return torch.from_numpy(x)[None], kernels.grey.astype(np.float64)


def cell_means(planes: np.ndarray) -> np.ndarray:
    channels, height, width = planes.shape
    return planes.reshape(channels, height // 8, 8, width // 8, 8).mean((2, 4))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_grey_is_that_of_the_native_kernels(order: str) -> None:
    spec = InputSpec(height=96, width=128, order=order, scale=0.5, mean=(3.0, 4.0, 5.0), std=(20.0, 30.0, 40.0))
    x, grey = prepared(photo(), spec)
    np.testing.assert_allclose(LowPass(spec, 8).grey(x)[0, 0].numpy(), grey, atol=1e-5)


def test_lowpass_is_opencvs_area_resize() -> None:
    x, grey = prepared(photo())
    expected = cv2.resize(grey, (16, 12), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(LowPass(SIZE, 8)(x)[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Applying")
def test_patterns_are_scikit_images() -> None:
    x, grey = prepared(photo())
    own = LocalBinaryPatterns(SIZE, 8)
    # Scikit-image knows no margin, so its ties fall either way.
    expected = local_binary_pattern(grey, 8, 1, "uniform")
    got = own.codes(own.grey(x))[0, 0].numpy()
    inner = (slice(1, -1), slice(1, -1))
    assert (got[inner] == expected[inner]).mean() > 0.995
    histogram = np.stack([expected == pattern for pattern in range(10)]).astype(float)
    difference = np.abs(own(x)[0].numpy() - cell_means(histogram))[:, 1:-1, 1:-1]
    assert difference.max() < 0.1
    assert difference.mean() < 0.002


def test_every_pixel_has_one_pattern_and_a_turned_image_the_same_patterns() -> None:
    own = LocalBinaryPatterns(InputSpec(height=96, width=96), 8)
    grey = torch.from_numpy(np.random.default_rng(0).random((1, 1, 96, 96), np.float32))
    assert torch.equal(own.detail(grey).sum(1), torch.ones(1, 96, 96))
    assert torch.equal(own.codes(grey.rot90(1, (2, 3))), own.codes(grey).rot90(1, (2, 3)))


def test_flat_areas_have_one_pattern_whatever_the_rounding() -> None:
    own = LocalBinaryPatterns(SIZE, 8)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 2e-7, (1, 1, 96, 128)).astype(np.float32))
    assert set(own.codes(0.7 + noise).unique().tolist()) == {8.0}


def test_gradients_are_scipys() -> None:
    x, grey = prepared(photo())
    own = Canny(SIZE, 8)
    smooth = ndimage.gaussian_filter(grey, 1.0, mode="nearest")
    for got, axis in zip(own.gradient(own.grey(x)), (0, 1), strict=True):
        expected = ndimage.sobel(smooth, axis=axis, mode="nearest")
        np.testing.assert_allclose(got[0, 0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_edges_agree_with_scikit_images_canny(seed: int) -> None:
    x, grey = prepared(photo(seed))
    own = Canny(SIZE, 8)
    got = own.edges(*own.gradient(own.grey(x)))[0, 0].numpy() > 0
    expected = canny(grey, sigma=1.0, low_threshold=0.1, high_threshold=0.2, mode="nearest")
    inner = (slice(2, -2), slice(2, -2))
    got, expected = got[inner], expected[inner]
    assert expected.mean() > 0.02
    # They differ where hysteresis would follow a weak edge further than the fixed reach.
    both = (got & expected).sum()
    assert both / (got | expected).sum() > 0.9
    assert both / got.sum() > 0.98


@pytest.mark.parametrize(("angle", "direction"), [(0, 0), (45, 1), (90, 2), (135, 3)])
def test_an_edge_counts_for_its_own_direction(angle: float, direction: int) -> None:
    """`angle` is the gradient's, from the right over down; an edge straight through a cell makes about 1."""
    ys, xs = np.mgrid[0:96, 0:128].astype(np.float32)
    along = np.cos(np.radians(angle)) * (xs - 61) + np.sin(np.radians(angle)) * (ys - 45)
    grey = torch.from_numpy(1 / (1 + np.exp(-along))).float()[None, None]
    own = Canny(SIZE, 8)
    map_ = torch.nn.functional.avg_pool2d(own.detail(grey), 8)[0]
    inner = map_[:, 1:-1, 1:-1]
    assert inner.sum((1, 2)).argmax() == direction
    assert inner[direction].sum() > 0.97 * inner.sum()
    if angle % 90 == 0:
        assert float(inner[direction].max()) == pytest.approx(1)


def test_lowpass_shows_nothing_finer_than_a_cell() -> None:
    grey = torch.rand(1, 1, 96, 128, generator=torch.manual_seed(0))
    order = torch.randperm(64)
    cells = grey.reshape(1, 12, 8, 16, 8).transpose(2, 3).reshape(1, 12, 16, 64)[..., order]
    shuffled = cells.reshape(1, 12, 16, 8, 8).transpose(2, 3).reshape(1, 1, 96, 128)
    own = LowPass(InputSpec(96, 128, mean=(0, 0, 0), std=(1, 1, 1)), 8)
    torch.testing.assert_close(own(shuffled.expand(-1, 3, -1, -1)), own(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("kind", MADE)
def test_the_exported_map_computes_the_same(kind: str) -> None:
    own = make_map(SIZE, MapSpec(kind=kind))
    assert own is not None
    x = torch.cat([prepared(photo(seed))[0] for seed in range(3)])
    want = own(x).numpy()
    assert want.shape == (3, map_channels(MapSpec(kind=kind)), 12, 16)
    assert want.dtype == np.float32
    assert want.min() >= 0
    assert 0.2 < want.max() < 4
    (got,) = run_graph(own, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kind", MADE)
def test_in_half_precision_the_map_stays_close(kind: str) -> None:
    own = make_map(SIZE, MapSpec(kind=kind))
    assert own is not None
    x, _ = prepared(photo())
    half = own(x.half())
    assert half.dtype == torch.float16
    assert float((half.float() - own(x)).abs().mean()) < 0.01


def test_hog_is_not_made_here() -> None:
    assert make_map(SIZE, MapSpec()) is None
    assert map_channels(MapSpec()) == 9
