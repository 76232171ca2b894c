"""NV12 and Bayer frames, flat field and region of interest: against OpenCV and float64 references."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import convolve, map_coordinates

from edge.errors import FrameError
from edge.frames import F32, U8, PixelFormat, Roi, aligned_f32
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.native import Preprocessor, isas
from edge.manifest import GAIN_ONE, InputSpec, Lens, MapSpec

F64 = NDArray[np.float64]
RAW = InputSpec(height=64, width=96, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SMALL = InputSpec(height=32, width=64, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BAYER = [kind for kind in PixelFormat if kind.bayer]
SPARSE = [PixelFormat.NV12, *BAYER]
#: OpenCV names a mosaic by its second row and column.
OPENCV = {
    PixelFormat.BAYER_RGGB: cv2.COLOR_BayerBG2RGB,
    PixelFormat.BAYER_BGGR: cv2.COLOR_BayerRG2RGB,
    PixelFormat.BAYER_GRBG: cv2.COLOR_BayerGB2RGB,
    PixelFormat.BAYER_GBRG: cv2.COLOR_BayerGR2RGB,
}
# Bilinear demosaicing as three convolutions.
_CHROMA = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
_GREEN = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4


def colour(pixels: U8, kind: PixelFormat) -> F64:
    """The frame as RGB `(height, width, 3)`, in float64, from the formats' definitions."""
    if kind is PixelFormat.NV12:
        height = pixels.shape[0] // 3 * 2
        luma = 255 / 219 * (np.maximum(pixels[:height].astype(float), 16) - 16)
        chroma = pixels[height:].reshape(height // 2, -1, 2).astype(float) - 128
        cb, cr = (255 / 224 * np.kron(chroma[..., c], np.ones((2, 2))) for c in (0, 1))
        red, blue = luma + 1.402 * cr, luma + 1.772 * cb
        green = (luma - 0.299 * red - 0.114 * blue) / 0.587
        return np.asarray(np.clip(np.stack([red, green, blue], axis=2), 0, 255))
    if kind.bayer:
        planes = np.zeros((3, *pixels.shape))
        for site, name in enumerate(kind.bayer):
            at = np.s_[site // 2 :: 2, site % 2 :: 2]
            planes["rgb".index(name)][at] = pixels[at]
        kernels = (_CHROMA, _GREEN, _CHROMA)
        return np.stack([convolve(p, k, mode="mirror") for p, k in zip(planes, kernels, strict=True)], axis=2)
    if kind is PixelFormat.MONO8:
        return np.repeat(pixels[..., None], 3, axis=2).astype(float)
    return pixels[..., ::-1].astype(float) if kind is PixelFormat.BGR8 else pixels.astype(float)


def overlap(source: int, target: int) -> F64:
    """How an axis is resized: box means where it shrinks, else linear."""
    if source < target:
        at = (np.arange(target) + 0.5) * source / target - 0.5
        return np.stack([np.interp(at, np.arange(source), unit) for unit in np.eye(source)], axis=1)
    edges, cells = np.arange(target + 1) * source / target, np.arange(source)
    low, high = np.maximum(edges[:-1, None], cells), np.minimum(edges[1:, None], cells + 1)
    return np.asarray(np.maximum(high - low, 0) * target / source)


def resized(image: F64, spec: InputSpec) -> F64:
    rows, columns = overlap(image.shape[0], spec.height), overlap(image.shape[1], spec.width)
    return np.asarray(np.einsum("yi,ijc,xj->cyx", rows, image, columns, optimize=True))


def noise(kind: PixelFormat, height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, kind.shape(height, width), np.uint8)


def prepare(
    pixels: U8, kind: PixelFormat, spec: InputSpec = RAW, corrections: Corrections = NOTHING
) -> tuple[F32, F32]:
    """X and the grey plane, after checking that every instruction set gives the same bits."""
    results = []
    for isa in isas():
        preprocessor = Preprocessor(spec, MapSpec(), isa=isa, corrections=corrections)
        x = aligned_f32(3, spec.height, spec.width)
        x.fill(np.nan)
        preprocessor.prepare(pixels, kind, x)
        results.append((x, preprocessor.grey.copy()))
    for x, grey in results[1:]:
        np.testing.assert_array_equal(x, results[0][0])
        np.testing.assert_array_equal(grey, results[0][1])
    return results[0]


def check(pixels: U8, kind: PixelFormat, spec: InputSpec, image: F64, corrections: Corrections = NOTHING) -> None:
    x, grey = prepare(pixels, kind, spec, corrections)
    expected = resized(image, spec)
    # Float32 at levels to 255, and the printed coefficients of BT.601.
    np.testing.assert_allclose(x, expected, atol=2e-3, rtol=1e-5)
    np.testing.assert_allclose(grey, np.tensordot([0.299, 0.587, 0.114], expected, 1) / 255, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(SPARSE),
    height=st.integers(2, 90),
    width=st.integers(2, 150),
    spec=st.sampled_from([RAW, SMALL]),
    pad=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_and_stride(kind: PixelFormat, height: int, width: int, spec: InputSpec, pad: int, seed: int) -> None:
    if kind is PixelFormat.NV12:
        height, width, pad = height // 2 * 2, width // 2 * 2, pad // 2 * 2
    buffer = noise(kind, height, width + pad, seed)
    pixels = buffer[:, :width]
    check(pixels, kind, spec, colour(pixels, kind))


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("size", [(2, 16384), (16384, 2), (40, 5000), (700, 700)])
def test_long_frames(kind: PixelFormat, size: tuple[int, int]) -> None:
    pixels = noise(kind, *size)
    check(pixels, kind, SMALL, colour(pixels, kind))


def test_wide_input_is_made_in_several_strips() -> None:
    spec = InputSpec(height=32, width=1056, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for kind, width in itertools.product(SPARSE[:3], (900, 3000)):
        pixels = noise(kind, 6, width)
        check(pixels, kind, spec, colour(pixels, kind))


@pytest.mark.parametrize("kind", BAYER)
def test_bayer_is_opencv_and_then_bgr(kind: PixelFormat) -> None:
    pixels = noise(kind, 97, 130)
    # OpenCV repeats what it finds one pixel from the border; its inner pixels of the mirrored frame are right.
    around = cv2.copyMakeBorder(pixels, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
    image = np.ascontiguousarray(cv2.cvtColor(around, OPENCV[kind])[2:-2, 2:-2])
    # OpenCV rounds every pixel.
    np.testing.assert_allclose(prepare(pixels, kind)[0], prepare(image, PixelFormat.RGB8)[0], atol=0.5)


def test_nv12_is_opencv_and_then_bgr() -> None:
    pixels = noise(PixelFormat.NV12, 98, 130)
    image = cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_NV12)
    np.testing.assert_allclose(prepare(pixels, PixelFormat.NV12)[0], prepare(image, PixelFormat.BGR8)[0], atol=0.6)


def test_nv12_at_every_colour() -> None:
    """At the input's own size no pixel is averaged with another."""
    levels = np.array([0, 1, 15, 16, 17, 81, 128, 145, 200, 235, 236, 255], np.uint8)
    triples = np.array(list(itertools.product(levels, levels, levels)))
    spec = InputSpec(height=64, width=128, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    blocks = np.resize(triples, (32, 64, 3)).astype(np.uint8)
    pixels = np.concatenate([np.kron(blocks[..., 0], np.ones((2, 2), np.uint8)), blocks[..., 1:].reshape(32, 128)])
    x, _ = prepare(pixels, PixelFormat.NV12, spec)
    # OpenCV rounds the coefficients to three digits, and every pixel.
    expected = cv2.cvtColor(pixels, cv2.COLOR_YUV2RGB_NV12).transpose(2, 0, 1)
    np.testing.assert_allclose(x, expected, atol=0.75)
    assert x.min() == 0
    assert x.max() == 255


@pytest.mark.parametrize("kind", list(PixelFormat))
def test_a_flat_field_of_ones_changes_no_bit(kind: PixelFormat) -> None:
    pixels = noise(kind, 150, 202)
    ones = Corrections(flat_field=np.full((150, 202), GAIN_ONE, np.uint16))
    for plain, flat in zip(prepare(pixels, kind), prepare(pixels, kind, corrections=ones), strict=True):
        np.testing.assert_array_equal(plain, flat)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(PixelFormat)),
    height=st.integers(2, 90),
    width=st.integers(2, 150),
    flat=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_flat_field_then_region_of_interest(
    kind: PixelFormat, height: int, width: int, flat: bool, seed: int, data: st.DataObject
) -> None:
    if kind is PixelFormat.NV12:
        height, width = height // 2 * 2, width // 2 * 2
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    roi = Roi(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    pixels = noise(kind, height, width, seed)
    image = colour(pixels, kind)
    gain = None
    if flat:
        gain = np.random.default_rng(seed + 1).integers(0, 1 << 16, (height, width)).astype(np.uint16)
        image = image * (gain / GAIN_ONE)[..., None]
    cut = image[y : y + roi.height, x : x + roi.width]
    check(pixels, kind, SMALL, cut, Corrections(roi, gain))


def test_a_region_of_interest_is_a_view_of_the_frame() -> None:
    """Bit by bit what the cut-out frame gives, where pixels need no neighbours."""
    for kind in (PixelFormat.BGR8, PixelFormat.RGB8, PixelFormat.MONO8):
        pixels = noise(kind, 120, 170)
        whole = prepare(pixels, kind, corrections=Corrections(Roi(31, 17, 101, 80)))
        cut = prepare(pixels[17:97, 31:132], kind)
        np.testing.assert_array_equal(whole[0], cut[0])
        np.testing.assert_array_equal(whole[1], cut[1])


def straightened(image: F64, lens: Lens) -> F64:
    """What the frame would be without distortion, from OpenCV's map, sampled by SciPy."""
    height, width = image.shape[:2]
    camera = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    terms = np.array([lens.k1, lens.k2, lens.p1, lens.p2, lens.k3])
    x, y = cv2.initUndistortRectifyMap(camera, terms, np.eye(3), camera, (width, height), cv2.CV_32FC1)
    planes = [map_coordinates(image[..., c], [y, x], order=1, mode="nearest") for c in range(3)]
    return np.stack(planes, axis=2)


LENSES = [
    Lens(120.0, 110.0, 61.5, 40.25),
    Lens(120.0, 110.0, 55.0, 42.0, -0.3, 0.1, 0.002, -0.001, 0.05),
    Lens(90.0, 95.0, 70.0, 30.0, 0.4, -0.2, -0.01, 0.02),
]


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("kind", list(PixelFormat))
def test_a_lens_is_straightened_between_flat_field_and_region_of_interest(kind: PixelFormat, lens: Lens) -> None:
    rng = np.random.default_rng(4)
    pixels = noise(kind, 80, 122)
    for gain in (None, rng.integers(2000, 9000, (80, 122)).astype(np.uint16)):
        image = colour(pixels, kind)
        if gain is not None:
            image = image * (gain / GAIN_ONE)[..., None]
        straight = straightened(image, lens)
        for roi in (None, Roi(13, 7, 91, 60)):
            cut = straight if roi is None else straight[7:67, 13:104]
            x, _ = prepare(pixels, kind, SMALL, Corrections(roi, gain, lens))
            # Positions are in single precision, and noise changes by 255 levels from pixel to pixel.
            np.testing.assert_allclose(x, resized(cut, SMALL), atol=0.1)


def test_a_lens_without_distortion_changes_nothing() -> None:
    for kind in PixelFormat:
        pixels = noise(kind, 80, 122)
        x, _ = prepare(pixels, kind, SMALL, Corrections(lens=LENSES[0]))
        np.testing.assert_allclose(x, prepare(pixels, kind, SMALL)[0], atol=0.02)


def test_the_wildest_lens_stays_within_the_frame() -> None:
    """Positions that are infinite or no numbers; nothing outside is read, which a sanitizer would tell."""
    for terms in itertools.product((1e6, -1e6), repeat=3):
        lens = Lens(1e-6, 1e-6, -1e6, 1e6, terms[0], terms[1], terms[2], -terms[2], terms[0])
        x, _ = prepare(noise(PixelFormat.BAYER_RGGB, 9, 12), PixelFormat.BAYER_RGGB, SMALL, Corrections(lens=lens))
        assert np.isfinite(x).all()


def test_a_corrected_frame_is_left_as_it_is() -> None:
    pixels = noise(PixelFormat.BGR8, 50, 60)
    corrections = Corrections(Roi(1, 2, 3, 4), np.zeros((80, 90), np.uint16), LENSES[1])
    made = Preprocessor(RAW, MapSpec(), corrections=corrections)
    x = aligned_f32(3, RAW.height, RAW.width)
    made.prepare(pixels, PixelFormat.BGR8, x, corrected=True)
    np.testing.assert_array_equal(x, prepare(pixels, PixelFormat.BGR8)[0])


def test_nothing_outside_the_frame_is_read() -> None:
    """Every byte around it is different, and the outcome the same."""
    for kind, width in itertools.product(PixelFormat, (40, 41)):
        if kind is PixelFormat.NV12 and width % 2:
            continue
        shape = kind.shape(30, width)
        results = []
        for around in (0, 255):
            buffer = np.full((shape[0] + 2, shape[1] + 6, *shape[2:]), around, np.uint8)
            pixels = buffer[1:-1, 2:-4]
            pixels[...] = noise(kind, 30, width)
            results.append(prepare(pixels, kind)[0])
        np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((7, 10), PixelFormat.NV12),
        ((8, 10), PixelFormat.NV12),
        ((6, 9), PixelFormat.NV12),
        ((6, 10, 3), PixelFormat.NV12),
        ((0, 10), PixelFormat.NV12),
        ((3, 0), PixelFormat.NV12),
        ((2 * 24576 + 3, 2), PixelFormat.NV12),
        ((1, 10), PixelFormat.BAYER_RGGB),
        ((10, 1), PixelFormat.BAYER_GBRG),
        ((0, 0), PixelFormat.BAYER_GBRG),
        ((10, 10, 3), PixelFormat.BAYER_BGGR),
        ((10, 10, 1), PixelFormat.BAYER_BGGR),
        ((10,), PixelFormat.BAYER_GRBG),
    ],
)
def test_hostile_shapes(shape: tuple[int, ...], kind: PixelFormat) -> None:
    with pytest.raises(FrameError, match="frame"):
        Preprocessor(RAW, MapSpec()).prepare(np.zeros(shape, np.uint8), kind, aligned_f32(3, 64, 96))


@pytest.mark.parametrize(
    ("corrections", "words"),
    [
        (Corrections(Roi(10, 0, 51, 50)), "region of interest"),
        (Corrections(Roi(0, 1, 60, 50)), "region of interest"),
        (Corrections(flat_field=np.zeros((60, 50), np.uint16)), "flat field is 50 x 60"),
    ],
)
def test_a_frame_of_another_size_than_the_calibrations(corrections: Corrections, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        prepare(noise(PixelFormat.BGR8, 50, 60), PixelFormat.BGR8, corrections=corrections)
