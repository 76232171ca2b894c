"""A small but real bundle, and an oracle for its scores that shares no code with the runtime but the HOG kernel.

The product is a set of fixed textures, 96 x 80 pixels; the network compares a part's features with those of the
prompt that looks most alike, so that good parts score low and a blemish scores high where it lies.  All weights are
random and seeded.  A nearly black frame makes the network return NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.ndimage import gaussian_filter

from edge.bundle import write_bundle
from edge.frames import F32, U8, PixelFormat, aligned_f32
from edge.images import pixel_digest
from edge.inspection.native import Preprocessor
from edge.manifest import (
    ONE_TILE,
    Calibration,
    CanvasSpec,
    CompareSpec,
    CoreSpec,
    Golden,
    GoldenFrame,
    InputSpec,
    MapSpec,
    ModelSpec,
)

FRAME_HEIGHT, FRAME_WIDTH = 80, 96
TOLERANCE = 0.01
TEXTURES = 5

_INPUT = InputSpec(height=64, width=64)
_MAP = MapSpec()
_SCALES = ((6, 16, 16), (8, 8, 8), (10, 4, 4))
_COMPARE = CompareSpec(scales=_SCALES, sigma=1.5, top_k=20)
_FEATURES = {f"level{level}": shape for level, shape in enumerate(_SCALES)}

Array = NDArray[np.float64]


class TinyProduct:
    """Parts to inspect, uint8 BGR `(80, 96, 3)`, the same for the same index."""

    def __init__(self) -> None:
        noise = np.random.default_rng(1).normal(size=(TEXTURES, FRAME_HEIGHT, FRAME_WIDTH, 3))
        smooth = gaussian_filter(noise, (0, 4, 4, 0))
        self.textures = 128 + 40 * smooth / smooth.std()

    def template(self, index: int) -> U8:
        """A texture as it is in the prompt bank."""
        return _to_pixels(self.textures[index % TEXTURES])

    def good(self, index: int) -> U8:
        """A part with a little sensor noise."""
        noise = np.random.default_rng(1000 + index).normal(scale=3, size=self.textures.shape[1:])
        return _to_pixels(self.textures[index % TEXTURES] + noise)

    def defective(self, index: int) -> U8:
        """A part with a blemish; `blemish(index)` says where."""
        pixels = self.good(index)
        x, y, width, height = self.blemish(index)
        pixels[y : y + height, x : x + width] = (20, 220, 240)
        return pixels

    def blemish(self, index: int) -> tuple[int, int, int, int]:
        """The blemish's box, `(x, y, width, height)`."""
        x, y = np.random.default_rng(2000 + index).integers((8, 8), (64, 52))
        return int(x), int(y), 20, 16

    def dark(self) -> U8:
        """A frame that makes the network return NaN: nearly black, but not without contrast."""
        pixels = np.zeros((FRAME_HEIGHT, FRAME_WIDTH, 3), np.uint8)
        pixels[::7, ::5] = 30
        return pixels


def _to_pixels(values: Array) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


class Weights:
    """The network's weights: every convolution has stride = kernel size, so that it is a product of patches."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)

        def draw(*shape: int, fan_in: int) -> F32:
            return (rng.normal(size=shape) * math.sqrt(2 / fan_in)).astype(np.float32)

        self.down = [draw(6, 3, 4, 4, fan_in=48), draw(8, 6, 2, 2, fan_in=24), draw(10, 8, 2, 2, fan_in=32)]
        self.up = draw(9, 6, 2, 2, fan_in=9)
        self.same = draw(8, 9, 1, 1, fan_in=9)
        self.half = draw(10, 9, 2, 2, fan_in=36)


MAP_SHARE = 0.1


class Oracle:
    """Scores as the design defines them, in float64 NumPy and SciPy; only the HOG map is the product's own."""

    def __init__(self, weights: Weights, canvas: CanvasSpec = ONE_TILE) -> None:
        self._weights = weights
        self._canvas = canvas
        self._preprocess = Preprocessor(_INPUT, _MAP, canvas)
        down, across = 64 - canvas.overlap, 64 - canvas.overlap
        self.shape = down * canvas.rows + canvas.overlap, across * canvas.columns + canvas.overlap
        self.corners = [(row * down, column * across) for row in range(canvas.rows) for column in range(canvas.columns)]

    def area(self, pixels: U8) -> tuple[int, int, int, int]:
        """Where the frame lies on the canvas: top, left, height, width."""
        (height, width), (high, wide) = self.shape, pixels.shape[:2]
        if self._canvas.fit == "stretch":
            return 0, 0, height, width
        scale = min(height / high, width / wide)
        high, wide = int(high * scale + 0.5), int(wide * scale + 0.5)
        return (height - high) // 2, (width - wide) // 2, high, wide

    def x(self, pixels: U8, tile: int = 0) -> Array:
        """Network input of a tile of a BGR frame."""
        top, left, high, wide = self.area(pixels)
        small = _resized(pixels, high, wide)
        around = (top, self.shape[0] - top - high, left, self.shape[1] - left - wide)
        whole = cv2.copyMakeBorder(small, *around, cv2.BORDER_REPLICATE)
        y, x = self.corners[tile]
        rgb = whole[y : y + 64, x : x + 64, ::-1] * _INPUT.scale
        return ((rgb - np.array(_INPUT.mean)) / np.array(_INPUT.std)).transpose(2, 0, 1)

    def map_and_descriptor(self, pixels: U8, tile: int = 0) -> tuple[F32, F32]:
        """HOG map and descriptor of a tile of a BGR frame."""
        x, h = aligned_f32(3, 64, 64), aligned_f32(*self._preprocess.map_shape)
        descriptor = aligned_f32(self._preprocess.descriptor_size)
        self._preprocess(pixels, PixelFormat.BGR8, x, h, descriptor, tile)
        return h, descriptor

    def features(self, x: Array) -> list[Array]:
        """F_X at every level."""
        levels = []
        for weight in self._weights.down:
            x = np.tanh(_conv(x, weight))
            levels.append(x)
        return levels

    def anomaly_map(self, pixels: U8, prompt: Sequence[Array] | None, tile: int = 0) -> Array:
        """The map `(64, 64)` of a frame's tile against a prompt's features."""
        h = self.map_and_descriptor(pixels, tile)[0].astype(np.float64)
        fx = self.features(self.x(pixels, tile))
        offered = list(prompt) if prompt is not None else [np.ones(shape) for shape in _SCALES]
        # A transposed convolution of stride = kernel: every cell becomes a block.
        spread = np.einsum("ihw,ioab->ohawb", h, self._weights.up).reshape(6, 16, 16)
        share = [spread, _conv(h, self._weights.same), _conv(h, self._weights.half)]
        total = np.zeros((64, 64))
        for x, given, more in zip(fx, offered, share, strict=True):
            y = given + MAP_SHARE * more
            cosine = (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
            total += cv2.resize(1 - cosine, (64, 64), interpolation=cv2.INTER_LINEAR)
        return gaussian_filter(total, _COMPARE.sigma)

    def entries(self, bank: Sequence[U8]) -> tuple[F32, list[list[Array]]]:
        """Descriptors and features of every tile of the images in `bank`."""
        places = [(image, tile) for image in bank for tile in range(len(self.corners))]
        descriptors = np.stack([self.map_and_descriptor(image, tile)[1] for image, tile in places])
        return descriptors, [self.features(self.x(image, tile)) for image, tile in places]

    def whole_map(self, pixels: U8, bank: Sequence[U8] | None) -> tuple[Array, int]:
        """The map of a frame, zero where the frame is not, and the first tile's prompt."""
        total, first = np.zeros(self.shape), -1
        share = np.zeros(self.shape)
        descriptors, features = self.entries(bank) if bank is not None else (np.empty((0, 0)), [])
        for tile, (y, x) in enumerate(self.corners):
            index = -1
            if bank is not None:
                index = int(np.argmax(descriptors @ self.map_and_descriptor(pixels, tile)[1]))
            first = index if tile == 0 else first
            # A tent over the tile, so wide that it only falls where it overlaps its neighbours.
            rows, columns = (self._tent(corner, length) for corner, length in ((y, self.shape[0]), (x, self.shape[1])))
            amap = self.anomaly_map(pixels, features[index] if bank is not None else None, tile)
            total[y : y + 64, x : x + 64] += np.outer(rows, columns) * amap
            share[y : y + 64, x : x + 64] += np.outer(rows, columns)
        assert np.allclose(share, 1)
        top, left, high, wide = self.area(pixels)
        outside = np.ones(self.shape, bool)
        outside[top : top + high, left : left + wide] = False
        total[outside] = 0
        return total, first

    def _tent(self, corner: int, length: int) -> Array:
        at, overlap = np.arange(64) + 0.5, self._canvas.overlap or 1e-9
        rise = np.ones(64) if corner == 0 else np.minimum(1, at / overlap)
        fall = np.ones(64) if corner + 64 == length else np.minimum(1, (64 - at) / overlap)
        return rise * fall

    def score(self, pixels: U8, bank: Sequence[U8] | None) -> tuple[float, float, int]:
        """Image score, peak and first prompt of a frame, the prompts being the features of the images in `bank`."""
        amap, first = self.whole_map(pixels, bank)
        ranked = np.sort(amap, axis=None)[::-1]
        return float(ranked[: _COMPARE.top_k].mean()), float(ranked[0]), first


def _resized(pixels: U8, height: int, width: int) -> Array:
    """Each axis by itself: where it shrinks by area, where it grows linearly."""
    high, wide = pixels.shape[:2]
    how = [
        cv2.INTER_AREA if source >= target else cv2.INTER_LINEAR for source, target in ((high, height), (wide, width))
    ]
    lower = cv2.resize(pixels.astype(np.float64), (wide, height), interpolation=how[0])
    return np.asarray(cv2.resize(lower, (width, height), interpolation=how[1]), np.float64)


def _conv(x: Array, weight: F32) -> Array:
    out, channels, size, _ = weight.shape
    _, height, width = x.shape
    patches = x.reshape(channels, height // size, size, width // size, size)
    return np.einsum("chawb,ocab->ohw", patches, weight.astype(np.float64)).reshape(out, height // size, -1)


def core_graph(weights: Weights, *, uses_prompt: bool = True, half: bool = False) -> bytes:
    """The network as a serialised ONNX graph; `half`: convolutions in float16 between casts."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: NDArray[np.generic]) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolve(kind: str, source: str, weight: F32, output: str) -> str:
        size = weight.shape[2]
        named = constant(f"{output}_weight", weight.astype(np.float16 if half else np.float32))
        if not half:
            return add(kind, [source, named], output, strides=[size, size], kernel_shape=[size, size])
        narrow = add("Cast", [source], f"{output}_in", to=TensorProto.FLOAT16)
        wide = add(kind, [narrow, named], f"{output}_out", strides=[size, size], kernel_shape=[size, size])
        return add("Cast", [wide], output, to=TensorProto.FLOAT)

    # The logarithm of a negative number, where the frame is nearly black.
    mean = add("ReduceMean", ["x"], "mean", axes=[1, 2, 3], keepdims=1)
    lifted = add("Add", [mean, constant("lift", np.float32([[[[1.9]]]]))], "lifted")
    trap = add("Mul", [add("Log", [lifted], "log"), constant("tiny", np.float32([[[[1e-20]]]]))], "trap")
    source = "x"
    for level, weight in enumerate(weights.down):
        source = add("Tanh", [convolve("Conv", source, weight, f"down_{level}")], f"tanh_{level}")
        add("Add", [source, trap], f"fx_{level}")

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])]
    if uses_prompt:
        inputs.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 9, 8, 8]))
        convolve("ConvTranspose", "h", weights.up, "share_0")
        convolve("Conv", "h", weights.same, "share_1")
        convolve("Conv", "h", weights.half, "share_2")
        for level, (name, shape) in enumerate(_FEATURES.items()):
            inputs.append(helper.make_tensor_value_info(f"prompt_{name}", TensorProto.FLOAT, [1, *shape]))
            scaled = add("Mul", [f"share_{level}", constant(f"part_{level}", np.float32(MAP_SHARE))], f"scaled_{level}")
            add("Add", [f"prompt_{name}", scaled], f"fy_{level}")
    else:
        for level, shape in enumerate(_SCALES):
            ones = constant(f"ones_{level}", np.ones((1, *shape), np.float32))
            add("Add", [ones, trap], f"fy_{level}")
    outputs = [
        helper.make_tensor_value_info(f"{side}_{level}", TensorProto.FLOAT, [1, *shape])
        for side in ("fx", "fy")
        for level, shape in enumerate(_SCALES)
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


@dataclass(frozen=True)
class TinyBundle:
    """A written bundle with what its scores should be.

    `score(pixels)` returns image score, peak and prompt index from the oracle, in float64; `anomaly_map(pixels)`
    likewise the map.
    """

    path: Path
    product: TinyProduct
    threshold: float
    score: Callable[[U8], tuple[float, float, int]]
    anomaly_map: Callable[[U8], Array]


def write_tiny_bundle(
    path: Path,
    *,
    calibrated: bool = True,
    uses_prompt: bool = True,
    bank_dtype: type[np.floating] = np.float32,
    half: bool = False,
    golden_frames: int = 3,
    golden_factor: float = 1.0,
    core: bytes | None = None,
    trained: Sequence[U8] = (),
    canvas: CanvasSpec = ONE_TILE,
) -> TinyBundle:
    """Write a bundle of the tiny product.

    Args:
        path: where to.
        calibrated: with a threshold between the good and the defective parts.
        uses_prompt: False for a network that sees only the frame.
        bank_dtype: float32 or float16, how the prompt features are stored.
        half: convolutions of the network in float16.
        golden_frames: how many there are, the first ones good, the last one defective.
        golden_factor: recorded golden scores are wrong by this factor.
        core: another graph in the network's place.
        trained: images that the bundle lists as trained on.
        canvas: of tiles of 64 x 64 pixels.
    """
    product, weights = TinyProduct(), Weights()
    oracle = Oracle(weights, canvas)
    bank = [product.template(index) for index in range(TEXTURES)] if uses_prompt else None

    def score(pixels: U8) -> tuple[float, float, int]:
        return oracle.score(pixels, bank)

    members: dict[str, bytes | NDArray[np.generic]] = {
        "core.onnx": core or core_graph(weights, uses_prompt=uses_prompt, half=half)
    }
    if bank is not None:
        descriptors, encoded = oracle.entries(bank)
        names = [f"texture{entry // canvas.tiles}.png" for entry in range(len(encoded))]
        members["prompts/names.json"] = msgspec.json.encode(names)
        members["prompts/descriptors.npy"] = descriptors
        for level, name in enumerate(_FEATURES):
            members[f"prompts/{name}.npy"] = np.stack([entry[level] for entry in encoded]).astype(bank_dtype)
    members["trained.json"] = msgspec.json.encode([pixel_digest(image) for image in trained])
    frames = []
    for index in range(golden_frames):
        image = product.defective(index) if index and index == golden_frames - 1 else product.good(index)
        expected, peak, _ = score(image)
        name = f"frame{index}"
        frames.append(GoldenFrame(name, expected * golden_factor, peak))
        members[f"golden/{name}.png"] = cv2.imencode(".png", image)[1].tobytes()
    members["golden.json"] = msgspec.json.encode(Golden(TOLERANCE, tuple(frames)))
    good = [score(product.good(index))[0] for index in range(10, 20)]
    threshold = max(good) * 1.2
    if calibrated:
        members["calibration.json"] = msgspec.json.encode(
            Calibration(
                threshold=threshold,
                pixel_threshold=threshold,
                false_reject=0.1,
                false_reject_bound=0.3,
                confidence=0.95,
                images=len(good),
                method="largest good score with a margin",
                created="2024-01-01T00:00:00+00:00",
                good_mean=float(np.mean(good)),
                good_std=float(np.std(good)),
                good_max=max(good),
                pixel_size_mm=0.5,
            )
        )
    core_spec = CoreSpec(
        precision="fp16" if half else "fp32",
        uses_map=uses_prompt,
        uses_prompt=uses_prompt,
        prompt_features=dict(_FEATURES) if uses_prompt else {},
    )
    model = ModelSpec("tiny", "random", _INPUT, _MAP, _COMPARE, core_spec, canvas)
    write_bundle(path, model=model, members=members, provenance={"purpose": "tests"})
    return TinyBundle(path, product, threshold, score, lambda pixels: oracle.whole_map(pixels, bank)[0])
