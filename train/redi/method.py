"""ReDi's training, whole: recover, then the Feature Recovery Block."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from edge.errors import TrainingError
from edge.frames import F32
from train.agreement import on_leader
from train.backbones import Backbone
from train.canvas import bank_entries
from train.config import TrainConfig
from train.detector import Bank, Method
from train.prepared import PreparedImages
from train.redi.bank import assign_prompts, k_centre, random_prompts
from train.redi.model import ReDi
from train.redi.phases import DiscriminatePhase, RecoverPhase, encode_bank
from train.redi.take import take_drawn, take_statistics
from train.redi.union import UnionPhase, nearest_prompts, take_evidence
from train.trainer import Trainer
from train.variants import admissible, describe, with_variants

#: Epochs of the FRB, for each epoch of recover.
DISCRIMINATE_EPOCHS = 1.6

#: In a timed run: recover's share of the time that trains; the FRB gets the rest.
RECOVER_SHARE = 0.42

#: In a timed run: what is kept for all that comes after, in seconds, and as a share of the time left at most.
AFTER_SECONDS, AFTER_SHARE = 120.0, 0.25

#: Runs of this length, in steps of recover or in minutes, learn from drawn defects in full, shorter ones in proportion.
FULL_STEPS, FULL_MINUTES = 100, 5.0

#: In a timed run: share of the FRB's time that computing the features of turned and altered copies may take.
COPIES_SHARE = 0.2


def build(config: TrainConfig, backbone: Backbone) -> ReDi:
    """Make the untrained detector."""
    return ReDi(
        backbone,
        config.input,
        config.map,
        prompt=config.prompt,
        frb=config.frb,
        density_weight=config.density_weight,
        expected=config.expected,
        level=config.level,
        memory=config.memory,
        marked=config.coarse is not None and config.evidence,
        drawn=config.drawn,
    )


def fit(trainer: Trainer, model: ReDi, images: PreparedImages, coarse: PreparedImages | None) -> Bank | None:
    """Train both stages, take the statistics, and encode the prompt bank, if the model takes prompts."""
    config = trainer.config
    if coarse is not None and not config.frb:
        raise TrainingError("coarse anomalies teach the FRB, and this run has none", "leave out --coarse or --no-frb")
    if coarse is not None and config.prompt != "nearest-hog":
        raise TrainingError(f"--prompt {config.prompt} does not go with --coarse", "leave out one of them")
    images = _varied(trainer, model, images)
    descriptors = _descriptors(model, images)
    entries = 1 if config.prompt in ("fixed", "none") else bank_entries(config.prompts, images.tiles)
    bank = images.plain[k_centre(descriptors[images.plain], entries)]
    if config.prompt == "random":
        prompts = random_prompts(len(images), bank, config.seed, images.origins)
    else:
        prompts = assign_prompts(descriptors, bank, config.prompt_choices, images.origins)
    _recover(trainer, model, images, bank, prompts)
    model.eval()
    encoded = encode_bank(model, images, bank)
    weight = config.correlation_weight
    if coarse is None:
        phase = DiscriminatePhase(model, images, encoded, prompts, weight)
    else:
        nearest = nearest_prompts(images, bank, coarse)
        phase = UnionPhase(model, images, encoded, prompts, weight, coarse, nearest)
        phase.coarse.fill(config.batch)
    if config.frb:
        _discriminate(trainer, phase, images)
    if model.statistics.taken:
        take_statistics(model, phase, images, config.seed)
    if model.statistics.drawn is not None:
        take_drawn(model, phase, images, _effort(trainer, images), config.seed)
    if isinstance(phase, UnionPhase) and model.statistics.marks is not None:
        take_evidence(model, phase, images.originals, config.seed)
    if config.prompt == "none":
        return None
    return Bank(
        features={"key": encoded.key.cpu(), "value": encoded.value.cpu()},
        descriptors=descriptors[bank],
        names=[images.row_name(row) for row in bank],
    )


def _varied(trainer: Trainer, model: ReDi, images: PreparedImages) -> PreparedImages:
    """Add turned and altered copies, as configured."""
    config = trainer.config
    if config.turned == "auto":
        transforms = admissible(images, model.phi)
    else:
        transforms = tuple(name for name in config.turned.split(",") if name != "none")
    describe(transforms, config.altered)
    return with_variants(images, model.input_spec, model.map_spec, transforms, config.altered, config.seed)


def _descriptors(model: ReDi, images: PreparedImages, batch: int = 8) -> F32:
    """Return what prompts are chosen by for every image, unit vectors `(N, D)`."""
    if model.prompt != "nearest-features":
        return images.descriptors
    rows = np.array_split(np.arange(len(images)), max(1, len(images) // batch))
    return np.concatenate([model.feature_descriptors(images.images(part)) for part in rows])


def _recover(
    trainer: Trainer, model: ReDi, images: PreparedImages, bank: NDArray[np.int64], prompts: NDArray[np.int64]
) -> None:
    phase = RecoverPhase(model, images, bank, prompts)
    share = _training_share(trainer) * (RECOVER_SHARE if trainer.config.frb else 1.0)
    plan = trainer.plan(images.originals, REDI.epochs, share)
    trainer.run_phase(phase, len(images), plan, salt=2)


def _discriminate(trainer: Trainer, phase: DiscriminatePhase, images: PreparedImages) -> None:
    """Train the FRB; what does not change of its inputs is computed first, unless it was trained already."""
    originals, rows = images.originals, len(images)
    if phase.name not in trainer.finished:
        begin = time.monotonic()
        phase.cache.fill(trainer.config.batch, 0, originals)
        seconds = time.monotonic() - begin
        left = trainer.plan(originals, REDI.epochs, _training_share(trainer)).seconds
        if left is not None:
            rows = originals * on_leader(lambda: _affordable(len(images.blocks), seconds, left))
        phase.cache.fill(trainer.config.batch, originals, rows)
    plan = trainer.plan(originals, REDI.epochs, _training_share(trainer), times=DISCRIMINATE_EPOCHS)
    trainer.run_phase(phase, rows, plan, salt=3)


def _training_share(trainer: Trainer) -> float:
    """Return how much of the time that is left in a timed run there is to train; what comes after takes the rest."""
    return 1 - min(AFTER_SHARE, AFTER_SECONDS / max(trainer.budget.left(), 1.0))


def _effort(trainer: Trainer, images: PreparedImages) -> float:
    """Return how much of the usual work to put into drawn defects: 1, or less after a very short training."""
    if trainer.config.minutes is not None:
        return min(1.0, trainer.config.minutes / FULL_MINUTES)
    steps = trainer.plan(images.originals, REDI.epochs, 1.0).steps
    assert steps is not None
    return min(1.0, steps / FULL_STEPS)


def _affordable(blocks: int, seconds: float, left: float) -> int:
    """Return how many of the blocks of rows to learn from, if the features of one take `seconds` to compute.

    Turned copies are worth less than steps: in a short run they would leave no time to learn from anything.
    """
    return min(blocks, 1 + int(COPIES_SHARE * left / max(seconds, 1e-6)))


REDI = Method(
    build=build,
    fit=fit,
    epochs=30,
    batch=8,
    learning_rate=1e-3,
    self_epochs=3.0,
    takes=(
        "altered",
        "coarse",
        "correlation_weight",
        "density_weight",
        "drawn",
        "evidence",
        "expected",
        "frb",
        "level",
        "map",
        "memory",
        "prompt",
        "prompt_choices",
        "prompts",
        "turned",
    ),
)
