"""The typed contents of a bundle's `manifest.json`, `calibration.json` and `golden.json`.

Data only: `edge.bundle` reads and writes them, the inspector and the trainers obey them.
"""

from __future__ import annotations

import msgspec

#: Raised by one whenever an older release could misread a newer bundle.
SCHEMA_VERSION = 1


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How camera bytes become the network input `X`, shape `(3, height, width)`, float32.

    The frame is resized to `height` x `width` (both multiples of 32; area-weighted where it shrinks, bilinear where
    it grows), its samples put in the channel order `order`, then `X[c] = (value * scale - mean[c]) / std[c]`.
    `CanvasSpec` says where this is done in tiles.
    """

    height: int = 256
    width: int = 256
    order: str = "rgb"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class CanvasSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a frame becomes the canvas, and the canvas its tiles, each of them one network input.

    The canvas is `rows * height - (rows - 1) * overlap` pixels high, `height` being the input's, and likewise wide.
    `fit`: `stretch` resizes the frame to it, `pad` keeps the frame's aspect, centres it and repeats its border around
    it.  `overlap` is that of neighbouring tiles in pixels: a multiple of 32, at most half a tile.  The tiles' anomaly
    maps are blended linearly where they overlap; what surrounds the frame is zero and counts for nothing.
    """

    fit: str = "stretch"
    rows: int = 1
    columns: int = 1
    overlap: int = 0

    @property
    def tiles(self) -> int:
        """How many there are, counted row by row."""
        return self.rows * self.columns


#: The whole frame as one network input.
ONE_TILE = CanvasSpec()


#: What the network can be shown of the test image: HOG, edges, local binary patterns, or grey averages, all by cell.
MAP_KINDS = ("hog", "canny", "lbp", "lowpass")

#: How an image's prompt is chosen from the bank: the entry whose descriptor is most similar, or any one, by content.
PROMPT_CHOICES = ("nearest", "random")


class MapSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The self-generated map `H`, shape `(channels, height / cell, width / cell)`, and the descriptor.

    Of kind `hog` it comes from *before*, with `orientations` channels; `canny`, `lbp` and `lowpass` are computed from
    `x` inside the core.  `epsilon` is HOG's L2-Hys regulariser in units of grey level 0–1, `clip` its ceiling.  The
    descriptor used to choose a prompt is, for every kind, HOG average-pooled by `descriptor_pool` x `descriptor_pool`
    cells and scaled to unit length.
    """

    kind: str = "hog"
    orientations: int = 9
    cell: int = 8
    epsilon: float = 0.05
    clip: float = 0.2
    descriptor_pool: int = 2


class CompareSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fused comparison: `map = Gaussian_sigma(sum_l Up_bilinear(1 - cos(F_X^l, F_Y^l)))`, score = top-k mean.

    `scales` lists `(channels, height, width)` of each feature level, finest first.  `top_k` counts pixels of the whole
    map, however many tiles it has: a defect is as large on the canvas whether it lies in one tile or in two.
    """

    scales: tuple[tuple[int, int, int], ...]
    sigma: float = 4.0
    top_k: int = 100


class CoreSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network between *before* and *after*, a portable ONNX graph in the member `core.onnx`.

    Inputs, batch 1: `x` `(1, 3, H, W)`; where `uses_map`, also `h` `(1, *HOG's shape)`; where `uses_prompt`, also one
    `prompt_NAME` per entry of `prompt_features`, whose bank is the member `prompts/NAME.npy`, shape `(K, *shape)`,
    float32 or float16.  `prompt_choice` is `nearest` (by descriptor) or `random` (drawn by the descriptor's bytes).
    Outputs: `fx_0 … fx_n`, `fy_0 … fy_n`, shape `(1, *scale)`, float32, in the order of `CompareSpec.scales`.
    `precision` is that of the graph's weights and arithmetic: `fp32` or `fp16` (mixed, with fp32 islands).
    """

    precision: str = "fp32"
    uses_map: bool = True
    uses_prompt: bool = True
    prompt_choice: str = "nearest"
    prompt_features: dict[str, tuple[int, ...]] = {}


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a runtime must know of the model; `method` and `backbone` are for people.

    Prompts are tiles like any other input, so that the bank may hold several of one image.
    """

    method: str
    backbone: str
    input: InputSpec
    map: MapSpec
    compare: CompareSpec
    core: CoreSpec
    canvas: CanvasSpec = ONE_TILE


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and SHA-256 (hex) of one member of the bundle."""

    size: int
    sha256: str


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a compiled engine is good for: it must equal the running machine's key to be used."""

    runtime: str
    device: str
    version: str
    precision: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table of contents: `members` covers every file of the bundle but the manifest itself.

    `engines` maps a member's name to the machine it was compiled for.  `provenance` is free text by key: training-data
    digest, seed, versions.
    """

    schema: int
    created: str
    model: ModelSpec
    members: dict[str, Member]
    provenance: dict[str, str] = {}
    engines: dict[str, EngineKey] = {}


#: A flat field's gain of 1.
GAIN_ONE = 4096


class Lens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lens after Brown and Conrady, as `cv2.calibrateCamera` finds it: focal lengths and centre in frame pixels.

    With `u = (x - cx) / fx`, `v = (y - cy) / fy`, `r2 = u² + v²` and `radial = 1 + k1 r2 + k2 r2² + k3 r2³`, what a
    lens without distortion would show at `(x, y)` lies at `fx (u radial + 2 p1 u v + p2 (r2 + 2 u²)) + cx` and
    `fy (v radial + p1 (r2 + 2 v²) + 2 p2 u v) + cy`.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The decision rule, made from good images alone; member `calibration.json`.

    A part is `ng` when its image score exceeds `threshold`; its mask is where the map exceeds `pixel_threshold`, which
    is never above `threshold`, so that an `ng` part always has a region.  `false_reject` is the rate asked for,
    `false_reject_bound` the distribution-free upper bound at `confidence` that the images support on their own.

    What is done to every frame of this camera before that: each pixel is multiplied by its gain in the member
    `flat_field.npy`, uint16 `(height, width)` of the frame in units of 1 / `GAIN_ONE`, whose SHA-256 (hex) is
    `flat_field`, empty where there is none; the distortion of `lens` is taken out, the frame's size stays; then `roi`,
    `(x, y, width, height)` in pixels of the frame, is cut out, and nothing else is inspected.  Golden frames are left
    as they are.
    """

    threshold: float
    pixel_threshold: float
    false_reject: float
    false_reject_bound: float
    confidence: float
    images: int
    method: str
    created: str
    good_mean: float
    good_std: float
    good_max: float
    min_region_px: int = 0
    pixel_size_mm: float | None = None
    roi: tuple[int, int, int, int] | None = None
    flat_field: str = ""
    lens: Lens | None = None


class GoldenFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pinned frame: member `golden/NAME.png` (lossless), with the score and peak every runtime must reproduce."""

    name: str
    score: float
    peak: float


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Member `golden.json`: `tolerance` is the largest accepted `|score - recorded| / recorded`."""

    tolerance: float
    frames: tuple[GoldenFrame, ...]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who vouches for the bundle; member `signature.json`.  `edge.signing` says what is signed.

    `key` and `signature` are hexadecimal, of 32 and 64 bytes; `algorithm` is `ed25519`.
    """

    algorithm: str
    key: str
    signature: str
