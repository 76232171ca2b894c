"""The settings of a training run, as recorded in its folder."""

from __future__ import annotations

import msgspec

from edge.manifest import ONE_TILE, CanvasSpec, InputSpec, MapSpec

#: What `--method` takes; `train.methods` has them.
METHODS = ("redi", "ckaad", "recon")

#: What `--backbone` takes beside `auto`; `train.resnet` has them.
BACKBONES = ("resnet18", "resnet50", "wide_resnet50_2", "resnet50_caffe")


#: How a ReDi model's prompts are chosen: the most similar image of the bank by HOG's descriptor or by pooled features,
#: any, always the same one; or none at all.
PROMPTS = ("nearest-hog", "nearest-features", "random", "fixed", "none")


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the outcome of a run, given its images.

    Budget: `minutes` of wall time for everything, or `epochs` or `steps` of the recover stage, to which the others are
    in proportion.  `weights` is `auto`, `self` or a file name; `backbone` is
    one of `BACKBONES`, or `auto`, as the weights say.  The size of `input` counts: its order and normalisation follow
    the backbone.  `turned` is `auto`, `none` or names of `train.variants.TRANSFORMS` with commas between; `altered` has
    copies with altered maps teach recovery.  `density_weight`, `expected`, `level` and `memory` are of
    `train.redi.statistics`; with `drawn`, ReDi also looks for what defects that are drawn onto good images have
    (`train.redi.drawn`).  `coarse` is a folder of images that show a defect somewhere, or `split`; with `evidence`,
    ReDi also looks for what they show (`train.redi.evidence`).  `layers`, of the backbone, are those that `ckaad` and
    `recon` compare.

    A run can only be resumed with the same settings.
    """

    data: str
    category: str | None = None
    layout: str = "auto"
    method: str = "redi"
    coarse: str | None = None
    layers: tuple[int, ...] = (1, 2, 3)
    backbone: str = "auto"
    weights: str = "auto"
    seed: int = 0
    minutes: float | None = None
    epochs: int | None = None
    steps: int | None = None
    input: InputSpec = InputSpec()
    canvas: CanvasSpec = ONE_TILE
    map: MapSpec = MapSpec()
    batch: int = 8
    prompts: int = 32
    prompt_choices: int = 3
    prompt: str = "nearest-hog"
    frb: bool = True
    density_weight: float = 1.0
    expected: bool = True
    level: bool = True
    memory: int = 768
    drawn: bool = True
    evidence: bool = True
    turned: str = "auto"
    altered: bool = False
    learning_rate: float = 1e-3
    correlation_weight: float = 1.0
    clip_norm: float = 1.0
