from __future__ import annotations

import pytest

from edge.manifest import CoreSpec, InputSpec, MapSpec, ModelSpec
from train.config import METHODS as NAMES
from train.config import TrainConfig
from train.detector import compare_spec, input_shapes, output_names
from train.methods import METHODS


def spec(core: CoreSpec) -> ModelSpec:
    size = InputSpec(height=64, width=96)
    return ModelSpec("any", "any", size, MapSpec(), compare_spec(size, ((64, 4), (128, 8))), core)


@pytest.mark.parametrize(
    ("core", "inputs"),
    [
        (CoreSpec(uses_map=False, uses_prompt=False), {"x": (3, 64, 96)}),
        (CoreSpec(uses_prompt=False), {"x": (3, 64, 96), "h": (9, 8, 12)}),
        (
            CoreSpec(prompt_features={"key": (4, 6), "value": (6, 2)}),
            {"x": (3, 64, 96), "h": (9, 8, 12), "prompt_key": (4, 6), "prompt_value": (6, 2)},
        ),
    ],
)
def test_inputs_and_outputs_follow_from_the_spec(core: CoreSpec, inputs: dict[str, tuple[int, ...]]) -> None:
    assert list(input_shapes(spec(core)).items()) == list(inputs.items())
    assert output_names(spec(core)) == ["fx_0", "fx_1", "fy_0", "fy_1"]


def test_the_comparison_covers_the_same_part_of_any_image() -> None:
    small, large = (compare_spec(InputSpec(height=side, width=side), ((64, 4),)) for side in (256, 512))
    assert small.scales == ((64, 64, 64),)
    assert (small.sigma, small.top_k) == (4.0, 100)
    assert (large.sigma, large.top_k) == (8.0, 400)


def test_every_name_of_the_command_line_is_a_method_and_takes_known_settings() -> None:
    assert tuple(METHODS) == NAMES
    for method in METHODS.values():
        assert set(method.takes) <= set(TrainConfig.__struct_fields__)
