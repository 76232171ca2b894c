"""The settings of a training run, as recorded in its folder."""

from __future__ import annotations

import msgspec

from edge.manifest import InputSpec, MapSpec


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the outcome of a run, given its images.

    Budget: `minutes` of wall time for everything, or `epochs` of the recover stage, to which the others are in
    proportion.  `weights` is `auto`, `self` or a file name.  A run can only be resumed with the same settings.
    """

    data: str
    category: str | None = None
    layout: str = "auto"
    method: str = "redi"
    weights: str = "auto"
    seed: int = 0
    minutes: float | None = None
    epochs: int | None = None
    input: InputSpec = InputSpec()
    map: MapSpec = MapSpec()
    batch: int = 8
    prompts: int = 32
    prompt_choices: int = 3
    learning_rate: float = 1e-3
    correlation_weight: float = 1.0
    clip_norm: float = 1.0
