"""Whether a bundle's specs make sense: msgspec has checked the types, this checks the values.

Each function raises `ValueError` naming the field and the value; `edge.bundle` adds the file's name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge.container import check_name
from edge.frames import MAX_SIDE as MAX_FRAME_SIDE
from edge.manifest import (
    MAP_KINDS,
    PROMPT_CHOICES,
    Calibration,
    CanvasSpec,
    CompareSpec,
    CoreSpec,
    Golden,
    InputSpec,
    Lens,
    MapSpec,
    ModelSpec,
)

#: Widest accepted side of the network input, and most channels, feature levels or array axes: far above any
#: use, low enough that no allocation made from a bundle's numbers can exhaust the machine.
MAX_SIDE = 8192
MAX_CHANNELS = 65_536
MAX_LEVELS = 16
MAX_AXES = 8
MAX_TILES = 256

#: Network strides reach 32, so that every level has whole pixels.
SIZE_MULTIPLE = 32

# Of any term of a lens: beyond, single precision could not hold what follows from it.
_LENS_LIMIT = 1e6

RESERVED_FEATURES = frozenset({"descriptors", "names"})


def map_shape(model: ModelSpec) -> tuple[int, int, int]:
    """Shape of HOG as *before* makes it: `(orientations, cell rows, cell columns)`."""
    cell = model.map.cell
    return model.map.orientations, model.input.height // cell, model.input.width // cell


def descriptor_size(model: ModelSpec) -> int:
    """Length of the descriptor made from HOG."""
    orientations, rows, columns = map_shape(model)
    pool = model.map.descriptor_pool
    return orientations * (rows // pool) * (columns // pool)


def validate_model(model: ModelSpec) -> None:
    """Raise `ValueError` unless a runtime can be built from `model`."""
    _require(bool(model.method), "model.method", model.method, "not be empty")
    _validate_input(model.input)
    validate_canvas(model.canvas, model.input)
    _validate_map(model.map, model.input)
    _validate_compare(model.compare, model.input)
    _validate_core(model.core)
    outside = model.map.kind == "hog" or not model.core.uses_map
    _require(outside, "model.core.uses_map", True, f"be false for the map {model.map.kind}, which the core makes")


def _validate_input(spec: InputSpec) -> None:
    for name, side in (("height", spec.height), ("width", spec.width)):
        whole = 0 < side <= MAX_SIDE and side % SIZE_MULTIPLE == 0
        _require(whole, f"model.input.{name}", side, f"be a multiple of {SIZE_MULTIPLE} up to {MAX_SIDE}")
    _require(spec.order in ("rgb", "bgr"), "model.input.order", spec.order, "be rgb or bgr")
    _positive("model.input.scale", spec.scale)
    for index, value in enumerate(spec.mean):
        _require(math.isfinite(value), f"model.input.mean[{index}]", value, "be finite")
    for index, value in enumerate(spec.std):
        _positive(f"model.input.std[{index}]", value)


def validate_canvas(spec: CanvasSpec, tile: InputSpec) -> None:
    """Raise `ValueError` unless `spec` makes a canvas from tiles of the network's input size."""
    _require(spec.fit in ("stretch", "pad"), "model.canvas.fit", spec.fit, "be stretch or pad")
    for name, count, side in (("rows", spec.rows, tile.height), ("columns", spec.columns, tile.width)):
        _require(1 <= count <= MAX_TILES, f"model.canvas.{name}", count, f"be 1 to {MAX_TILES}")
        if count > 1:
            half = 0 <= spec.overlap <= side // 2 and spec.overlap % SIZE_MULTIPLE == 0
            must = f"be a multiple of {SIZE_MULTIPLE} up to half a tile, {side // 2}"
            _require(half, "model.canvas.overlap", spec.overlap, must)
        whole = count * side - (count - 1) * spec.overlap
        _require(whole <= MAX_SIDE, f"model.canvas.{name}", count, f"make a canvas of up to {MAX_SIDE} pixels")
    _require(spec.tiles <= MAX_TILES, "model.canvas.rows", spec.rows, f"make at most {MAX_TILES} tiles")
    if spec.tiles == 1:
        _require(spec.overlap == 0, "model.canvas.overlap", spec.overlap, "be 0 where there is one tile")


def _validate_map(spec: MapSpec, size: InputSpec) -> None:
    _require(spec.kind in MAP_KINDS, "model.map.kind", spec.kind, f"be one of {', '.join(MAP_KINDS)}")
    _require(1 <= spec.orientations <= 64, "model.map.orientations", spec.orientations, "be 1 to 64")
    fits = spec.cell >= 1 and size.height % spec.cell == 0 and size.width % spec.cell == 0
    _require(fits, "model.map.cell", spec.cell, "divide the input's height and width")
    pool = spec.descriptor_pool
    fits = pool >= 1 and (size.height // spec.cell) % pool == 0 and (size.width // spec.cell) % pool == 0
    _require(fits, "model.map.descriptor_pool", pool, "divide the map's rows and columns")
    _positive("model.map.epsilon", spec.epsilon)
    _positive("model.map.clip", spec.clip)


def _validate_compare(spec: CompareSpec, size: InputSpec) -> None:
    _require(1 <= len(spec.scales) <= MAX_LEVELS, "model.compare.scales", spec.scales, "list 1 to 16 levels")
    above = (size.height, size.width)
    for index, (channels, height, width) in enumerate(spec.scales):
        field = f"model.compare.scales[{index}]"
        whole = 1 <= channels <= MAX_CHANNELS and 1 <= height <= above[0] and 1 <= width <= above[1]
        _require(whole, field, spec.scales[index], "be (channels, height, width), no finer than the level before")
        above = (height, width)
    _require(0 <= spec.sigma <= 64, "model.compare.sigma", spec.sigma, "be 0 to 64")
    pixels = size.height * size.width
    _require(1 <= spec.top_k <= pixels, "model.compare.top_k", spec.top_k, f"be 1 to {pixels}")


def _validate_core(spec: CoreSpec) -> None:
    _require(spec.precision in ("fp32", "fp16"), "model.core.precision", spec.precision, "be fp32 or fp16")
    choice = spec.prompt_choice
    _require(choice in PROMPT_CHOICES, "model.core.prompt_choice", choice, f"be one of {', '.join(PROMPT_CHOICES)}")
    without = spec.uses_prompt or not spec.prompt_features
    features = sorted(spec.prompt_features)
    _require(without, "model.core.prompt_features", features, "be empty where uses_prompt is false")
    for name, shape in spec.prompt_features.items():
        field = f"model.core.prompt_features[{name!r}]"
        _require(name.isidentifier() and name not in RESERVED_FEATURES, field, name, "be a plain name of its own")
        whole = 1 <= len(shape) < MAX_AXES and all(1 <= side <= MAX_CHANNELS for side in shape)
        _require(whole, field, shape, "be a shape of positive sides")


def validate_calibration(calibration: Calibration) -> None:
    """Raise `ValueError` unless `calibration` is a usable decision rule."""
    c = calibration
    _positive("calibration.threshold", c.threshold)
    _positive("calibration.pixel_threshold", c.pixel_threshold)
    below = c.pixel_threshold <= c.threshold
    _require(below, "calibration.pixel_threshold", c.pixel_threshold, f"not be above the threshold {c.threshold}")
    _require(0 < c.false_reject < 1, "calibration.false_reject", c.false_reject, "be between 0 and 1")
    bound = 0 <= c.false_reject_bound <= 1
    _require(bound, "calibration.false_reject_bound", c.false_reject_bound, "be 0 to 1")
    _require(0 < c.confidence < 1, "calibration.confidence", c.confidence, "be between 0 and 1")
    _require(c.images >= 1, "calibration.images", c.images, "be at least 1")
    for name, value in (("good_mean", c.good_mean), ("good_std", c.good_std), ("good_max", c.good_max)):
        _require(math.isfinite(value) and value >= 0, f"calibration.{name}", value, "be finite and not negative")
    _require(c.min_region_px >= 0, "calibration.min_region_px", c.min_region_px, "not be negative")
    if c.pixel_size_mm is not None:
        _positive("calibration.pixel_size_mm", c.pixel_size_mm)
    if c.lens is not None:
        _validate_lens(c.lens)
    if c.roi is not None:
        x, y, width, height = c.roi
        within = x >= 0 and y >= 0 and width > 0 and height > 0 and max(x + width, y + height) <= MAX_FRAME_SIDE
        _require(
            within, "calibration.roi", c.roi, f"be x, y, width, height of a part of a frame to {MAX_FRAME_SIDE} a side"
        )


def _validate_lens(lens: Lens) -> None:
    for name in lens.__struct_fields__:
        value = getattr(lens, name)
        _require(math.isfinite(value) and abs(value) <= _LENS_LIMIT, f"calibration.lens.{name}", value, "be a number")
    _positive("calibration.lens.fx", lens.fx)
    _positive("calibration.lens.fy", lens.fy)


def validate_flat_field(dtype: str, shape: Sequence[int]) -> None:
    """Raise `ValueError` unless an array of this type and shape can be a flat field."""
    whole = len(shape) == 2 and all(0 < side <= MAX_FRAME_SIDE for side in shape)
    _require(dtype == "uint16" and whole, "the flat field", f"{dtype} {tuple(shape)}", "be uint16 (height, width)")


def validate_golden(golden: Golden) -> None:
    """Raise `ValueError` unless golden frames have distinct safe names, finite scores, a sane tolerance."""
    _require(0 < golden.tolerance <= 1, "golden.tolerance", golden.tolerance, "be above 0 and at most 1")
    seen: set[str] = set()
    for index, frame in enumerate(golden.frames):
        field = f"golden.frames[{index}]"
        check_name(f"golden/{frame.name}.png")
        _require(frame.name not in seen, f"{field}.name", frame.name, "be there once")
        seen.add(frame.name)
        for name, value in (("score", frame.score), ("peak", frame.peak)):
            _require(math.isfinite(value) and value >= 0, f"{field}.{name}", value, "be finite and not negative")


def validate_array(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise `ValueError` unless the array in member `name` has the shape that the model asks for."""
    _require(tuple(shape) == tuple(expected), f"the shape of {name}", tuple(shape), f"be {tuple(expected)}")


def _positive(field: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, field, value, "be finite and above 0")


def _require(holds: bool, field: str, value: object, must: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value!r}, but must {must}")
