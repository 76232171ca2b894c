"""The core's inputs and outputs, as the manifest states them: what every engine is checked against."""

from __future__ import annotations

from edge.manifest import ModelSpec
from edge.validation import map_shape

Shapes = dict[str, tuple[int, ...]]


def core_inputs(model: ModelSpec) -> Shapes:
    """Return the core's inputs, float32, each with its shape and a batch of 1: `x`, maybe `h`, maybe `prompt_*`."""
    shapes: Shapes = {"x": (1, 3, model.input.height, model.input.width)}
    if model.core.uses_map:
        shapes["h"] = (1, *map_shape(model))
    if model.core.uses_prompt:
        shapes |= {f"prompt_{name}": (1, *shape) for name, shape in model.core.prompt_features.items()}
    return shapes


def core_outputs(model: ModelSpec) -> Shapes:
    """Return the core's outputs, float32, each with its shape and a batch of 1: `fx_0 …`, then `fy_0 …`."""
    return {f"{side}_{level}": (1, *shape) for side in ("fx", "fy") for level, shape in enumerate(model.compare.scales)}
