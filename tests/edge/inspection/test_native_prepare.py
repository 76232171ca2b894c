"""Frame bytes → network input and grey plane, against a float64 reference and OpenCV."""

from fractions import Fraction
from math import ceil, floor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BundleMismatchError, FrameError
from edge.frames import PixelFormat, aligned_f32
from edge.inspection.native import MAX_SIDE, Preprocessor, isas
from edge.manifest import InputSpec, MapSpec

RAW = InputSpec(height=64, width=96, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
sides = st.sampled_from([32, 64, 96])
formats = st.sampled_from([PixelFormat.BGR8, PixelFormat.RGB8, PixelFormat.MONO8])


def axis_matrix(source: int, target: int) -> np.ndarray:
    """The resize of one axis, from its definition: exact box means where it shrinks, else linear interpolation."""
    if source < target:
        position = (np.arange(target) + 0.5) * source / target - 0.5
        return np.stack([np.interp(position, np.arange(source), unit) for unit in np.eye(source)], axis=1)
    matrix = np.zeros((target, source))
    size = Fraction(source, target)
    for o in range(target):
        low, high = o * size, (o + 1) * size
        for i in range(floor(low), ceil(high)):
            matrix[o, i] = (min(high, i + 1) - max(low, i)) / size
    return matrix


def reference(pixels: np.ndarray, pixel_format: PixelFormat, spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixel_format is PixelFormat.MONO8 else pixels
    rgb = rgb[..., ::-1] if pixel_format is PixelFormat.BGR8 else rgb
    rows, columns = axis_matrix(pixels.shape[0], spec.height), axis_matrix(pixels.shape[1], spec.width)
    resized = np.einsum("yi,ijc,xj->cyx", rows, rgb.astype(np.float64), columns, optimize=True)
    grey = np.einsum("c,cyx->yx", [0.299, 0.587, 0.114], resized) / 255
    ordered = resized if spec.order == "rgb" else resized[::-1]
    mean, std = np.reshape(spec.mean, (3, 1, 1)), np.reshape(spec.std, (3, 1, 1))
    return (ordered * spec.scale - mean) / std, grey


def frame(rng: np.random.Generator, height: int, width: int, pixel_format: PixelFormat) -> np.ndarray:
    shape = (height, width) if pixel_format is PixelFormat.MONO8 else (height, width, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def prepare(pixels: np.ndarray, pixel_format: PixelFormat, spec: InputSpec, isa: str | None = None):
    preprocessor = Preprocessor(spec, MapSpec(), isa=isa)
    x = aligned_f32(3, spec.height, spec.width)
    preprocessor.prepare(pixels, pixel_format, x)
    return x, preprocessor.grey.copy()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    pixel_format=formats,
    out=st.tuples(sides, sides),
    order=st.sampled_from(["rgb", "bgr"]),
    pad=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_format_and_stride(height, width, pixel_format, out, order, pad, seed):
    spec = InputSpec(height=out[0], width=out[1], order=order)
    buffer = frame(np.random.default_rng(seed), height, width + pad, pixel_format)
    pixels = buffer[:, :width]
    expected_x, expected_grey = reference(pixels, pixel_format, spec)
    results = [prepare(pixels, pixel_format, spec, isa) for isa in isas()]
    x, grey = results[0]
    np.testing.assert_allclose(x, expected_x, atol=2e-5)
    np.testing.assert_allclose(grey, expected_grey, atol=2e-6)
    for other_x, other_grey in results[1:]:
        np.testing.assert_array_equal(other_x, x)
        np.testing.assert_array_equal(other_grey, grey)


@pytest.mark.parametrize("shape", [(900, 900), (512, 512), (64, 96), (127, 2049), (1080, 1920), (65, 97)])
def test_shrinking_is_opencv_area(shape):
    pixels = frame(np.random.default_rng(1), *shape, PixelFormat.RGB8)
    x, _ = prepare(pixels, PixelFormat.RGB8, RAW)
    expected = cv2.resize(pixels.astype(np.float32), (RAW.width, RAW.height), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(x, expected.transpose(2, 0, 1), atol=1e-3)


@pytest.mark.parametrize("shape", [(63, 95), (1, 1), (1, 40), (17, 2), (32, 48)])
def test_growing_is_opencv_linear(shape):
    pixels = frame(np.random.default_rng(2), *shape, PixelFormat.RGB8)
    x, _ = prepare(pixels, PixelFormat.RGB8, RAW)
    expected = cv2.resize(pixels.astype(np.float32), (RAW.width, RAW.height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(x, expected.transpose(2, 0, 1), atol=1e-3)


def test_same_size_is_exact():
    pixels = frame(np.random.default_rng(3), RAW.height, RAW.width, PixelFormat.BGR8)
    x, _ = prepare(pixels, PixelFormat.BGR8, RAW)
    np.testing.assert_array_equal(x, pixels[..., ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(3, MAX_SIDE), (MAX_SIDE, 3), (40, 5000)])
def test_the_longest_frames(shape):
    pixels = frame(np.random.default_rng(4), *shape, PixelFormat.BGR8)
    spec = InputSpec(height=32, width=32)
    expected, _ = reference(pixels, PixelFormat.BGR8, spec)
    np.testing.assert_allclose(prepare(pixels, PixelFormat.BGR8, spec)[0], expected, atol=2e-5)


def test_wide_input_is_made_in_several_strips():
    spec = InputSpec(height=32, width=1056)
    pixels = frame(np.random.default_rng(5), 50, 3000, PixelFormat.BGR8)
    expected, _ = reference(pixels, PixelFormat.BGR8, spec)
    np.testing.assert_allclose(prepare(pixels, PixelFormat.BGR8, spec)[0], expected, atol=2e-5)


def test_mono_equals_the_same_grey_in_colour():
    mono = frame(np.random.default_rng(6), 100, 77, PixelFormat.MONO8)
    one = prepare(mono, PixelFormat.MONO8, InputSpec())
    for pixel_format in (PixelFormat.BGR8, PixelFormat.RGB8):
        three = prepare(np.repeat(mono[..., None], 3, axis=2), pixel_format, InputSpec())
        np.testing.assert_array_equal(one[0], three[0])
        np.testing.assert_array_equal(one[1], three[1])


def test_upside_down_view():
    pixels = frame(np.random.default_rng(7), 80, 90, PixelFormat.BGR8)
    flipped = prepare(pixels[::-1], PixelFormat.BGR8, RAW)
    copied = prepare(np.ascontiguousarray(pixels[::-1]), PixelFormat.BGR8, RAW)
    np.testing.assert_array_equal(flipped[0], copied[0])


def test_many_frame_sizes_in_turn():
    preprocessor = Preprocessor(RAW, MapSpec())
    x = aligned_f32(3, RAW.height, RAW.width)
    rng = np.random.default_rng(8)
    for height in [*range(40, 60), *range(40, 60)]:
        pixels = frame(rng, height, 70, PixelFormat.RGB8)
        preprocessor.prepare(pixels, PixelFormat.RGB8, x)
        np.testing.assert_allclose(x, reference(pixels, PixelFormat.RGB8, RAW)[0], atol=1e-3)


def test_nothing_is_written_beyond_the_outputs():
    guard = 64
    preprocessor = Preprocessor(RAW, MapSpec())
    sizes = (3 * RAW.height * RAW.width, int(np.prod(preprocessor.map_shape)), preprocessor.descriptor_size)
    buffers = [np.full(size + 2 * guard, 7.0, np.float32) for size in sizes]
    x, h, descriptor = (buffer[guard:-guard] for buffer in buffers)
    pixels = frame(np.random.default_rng(9), 75, 93, PixelFormat.BGR8)
    x = x.reshape(3, RAW.height, RAW.width)
    preprocessor(pixels, PixelFormat.BGR8, x, h.reshape(preprocessor.map_shape), descriptor)
    for buffer in buffers:
        assert (buffer[:guard] == 7).all()
        assert (buffer[-guard:] == 7).all()


@pytest.mark.parametrize(
    ("pixels", "pixel_format"),
    [
        (np.zeros((0, 0), np.uint8), PixelFormat.MONO8),
        (np.zeros((0, 10, 3), np.uint8), PixelFormat.BGR8),
        (np.zeros((10, 0, 3), np.uint8), PixelFormat.BGR8),
        (np.zeros((10, 10), np.uint8), PixelFormat.BGR8),
        (np.zeros((10, 10, 4), np.uint8), PixelFormat.RGB8),
        (np.zeros((10, 10, 3), np.uint8), PixelFormat.MONO8),
        (np.zeros((), np.uint8), PixelFormat.MONO8),
        (np.zeros((2, 10, 10, 3), np.uint8), PixelFormat.BGR8),
        (np.zeros((10, 10, 3), np.uint16), PixelFormat.BGR8),
        (np.zeros((10, 10, 3), np.float32), PixelFormat.BGR8),
        (np.zeros((10, 20, 3), np.uint8)[:, ::2], PixelFormat.BGR8),
        (np.zeros((10, 10, 3), np.uint8)[..., ::-1], PixelFormat.BGR8),
        (np.zeros((10, 20), np.uint8)[:, ::-1], PixelFormat.MONO8),
        (np.zeros((1, MAX_SIDE + 1), np.uint8), PixelFormat.MONO8),
    ],
)
def test_bad_frames(pixels, pixel_format):
    preprocessor = Preprocessor(RAW, MapSpec())
    with pytest.raises(FrameError, match="frame"):
        preprocessor.prepare(pixels, pixel_format, aligned_f32(3, RAW.height, RAW.width))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 64, 64), np.float32),
        np.zeros((3, 64, 96), np.float64),
        np.zeros((3, 96, 64), np.float32).transpose(0, 2, 1),
        np.broadcast_to(np.float32(0), (3, 64, 96)),
    ],
)
def test_bad_outputs(x):
    with pytest.raises(ValueError, match=r"^x "):
        Preprocessor(RAW, MapSpec()).prepare(np.zeros((9, 9, 3), np.uint8), PixelFormat.BGR8, x)


@pytest.mark.parametrize(
    ("inputs", "maps"),
    [
        (InputSpec(height=0), MapSpec()),
        (InputSpec(width=100), MapSpec()),
        (InputSpec(order="rbg"), MapSpec()),
        (InputSpec(std=(1.0, 0.0, 1.0)), MapSpec()),
        (InputSpec(), MapSpec(orientations=19)),
        (InputSpec(), MapSpec(orientations=0)),
        (InputSpec(), MapSpec(cell=7)),
        (InputSpec(height=32), MapSpec(cell=32)),
        (InputSpec(), MapSpec(descriptor_pool=3)),
        (InputSpec(), MapSpec(epsilon=0.0)),
    ],
)
def test_specifications_that_cannot_be_served(inputs, maps):
    with pytest.raises(BundleMismatchError):
        Preprocessor(inputs, maps)
