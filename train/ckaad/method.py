"""CKAAD's and Recon's training, whole."""

from __future__ import annotations

from dataclasses import replace

from train.backbones import Backbone
from train.ckaad.model import Ckaad
from train.ckaad.phase import AdversarialPhase, ReconstructPhase
from train.config import TrainConfig
from train.detector import Method
from train.prepared import PreparedImages
from train.trainer import Trainer


def build(config: TrainConfig, backbone: Backbone) -> Ckaad:
    """Make the untrained detector."""
    return Ckaad(backbone, config.input, config.map, config.layers, config.method)


def fit_adversarial(trainer: Trainer, model: Ckaad, images: PreparedImages, coarse: PreparedImages | None) -> None:
    """Train with coarse anomalies, or with pseudo-anomalies where there are none."""
    phase = AdversarialPhase(model, images, coarse)
    if phase.coarse is not None:
        phase.coarse.fill(trainer.config.batch)
    _run(trainer, phase, images)


def fit_plain(trainer: Trainer, model: Ckaad, images: PreparedImages, coarse: PreparedImages | None) -> None:
    """Train on good images alone."""
    _run(trainer, ReconstructPhase(model, images), images)


def _run(trainer: Trainer, phase: ReconstructPhase, images: PreparedImages) -> None:
    config = trainer.config
    phase.cache.fill(config.batch)
    plan = trainer.plan(len(images), CKAAD.epochs, 1.0)
    trainer.run_phase(phase, len(images), plan, salt=4)


CKAAD = Method(
    build=build,
    fit=fit_adversarial,
    epochs=200,
    batch=16,
    learning_rate=5e-3,
    self_epochs=0.5,
    takes=("coarse", "layers"),
)
RECON = replace(CKAAD, fit=fit_plain, takes=("layers",))
