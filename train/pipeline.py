"""`train-run`, whole: images in, a finished run folder out.  One function to read from top to bottom."""

from __future__ import annotations

import platform
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from edge import __version__
from edge.cli import console, progress
from train.backbones import ResNet18, backbone_from_state, load_weights
from train.config import TrainConfig
from train.datasets import open_dataset
from train.prepared import PreparedImages, prepare
from train.redi.bank import assign_prompts, k_centre
from train.redi.model import ReDi
from train.redi.phases import DiscriminatePhase, RecoverPhase, encode_bank
from train.runfolder import RunFolder
from train.selftrain import SelfPhase
from train.trainer import Budget, Trainer, choose_device

#: Epochs of recover where neither --minutes nor --epochs is given.
DEFAULT_EPOCHS = 30

#: Epochs of the other phases, for each epoch of recover.
SELF_EPOCHS, DISCRIMINATE_EPOCHS = 3.0, 1.6

#: In a timed run: self-training's share of the whole, then recover's share of what is left; the FRB gets the rest.
SELF_SHARE, RECOVER_SHARE = 0.35, 0.42


def train(folder: RunFolder, config: TrainConfig, device_name: str = "auto") -> None:
    """Train `config` into `folder` on `auto`, `cpu` or `cuda`, resuming where an earlier attempt stopped.

    Raises:
        DataError: the images or the weights cannot be used.
        TrainingError: the run cannot be resumed, written or continued.
    """
    dataset = open_dataset(config.data, layout=config.layout, category=config.category)
    folder.begin(config)
    if folder.finished:
        console.print(f"{folder.path}: already trained; evaluate it with train-eval, or give --restart")
        return
    device = choose_device(device_name)
    torch.manual_seed(config.seed)
    saved = folder.load("checkpoint.pt") or {}
    budget = Budget(config.minutes, float(saved.get("spent", 0.0)))
    # Before the images, which may take minutes: weights that are not there are said at once.
    ready = _ready_backbone(folder, config)
    images = prepare(dataset.train, config.input, config.map, device)
    with SummaryWriter(str(folder.path / "log")) as log:
        trainer = Trainer(folder, config, budget, log, device)
        trainer.history.update(saved.get("history", {}))
        backbone, weights = ready or _self_trained(trainer, images)
        folder.save("backbone.pth", {"state": backbone.state_dict(), "source": weights})
        model = ReDi(backbone, config.input, config.map).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        bank = k_centre(images.descriptors, config.prompts)
        prompts = assign_prompts(images.descriptors, bank, config.prompt_choices)
        _recover(trainer, model, images, bank, prompts, saved)
        _discriminate(trainer, model, images, bank, prompts)
    _finish(trainer, model, images, bank, weights, dataset.digest())


def _ready_backbone(folder: RunFolder, config: TrainConfig) -> tuple[ResNet18, str] | None:
    """Return the extractor that this run already has, or was given, and its provenance; None: it is to be learnt."""
    stored = folder.load("backbone.pth")
    if stored is not None:
        return backbone_from_state(stored["state"], str(folder.path / "backbone.pth")), str(stored["source"])
    if config.weights == "self":
        return None
    state, source = load_weights(config.weights)
    return backbone_from_state(state, config.weights), source


def _self_trained(trainer: Trainer, images: PreparedImages) -> tuple[ResNet18, str]:
    config = trainer.config
    phase = SelfPhase(images)
    torch.manual_seed(config.seed)
    plan = trainer.plan(len(images), SELF_EPOCHS * (config.epochs or DEFAULT_EPOCHS), SELF_SHARE)
    trainer.run_phase(phase, len(images), plan, {}, salt=1)
    return backbone_from_state(phase.folded(), config.weights), "learnt on the training images"


def _recover(
    trainer: Trainer,
    model: ReDi,
    images: PreparedImages,
    bank: NDArray[np.int64],
    prompts: NDArray[np.int64],
    saved: dict[str, Any],
) -> None:
    if saved.get("phase") == DiscriminatePhase.name:
        model.recover.load_state_dict(saved["others"]["recover"])
        return
    config = trainer.config
    phase = RecoverPhase(model, images, bank, prompts)
    plan = trainer.plan(len(images), config.epochs or DEFAULT_EPOCHS, RECOVER_SHARE)
    trainer.run_phase(phase, len(images), plan, {}, salt=2)


def _discriminate(
    trainer: Trainer, model: ReDi, images: PreparedImages, bank: NDArray[np.int64], prompts: NDArray[np.int64]
) -> None:
    config = trainer.config
    model.eval()
    phase = DiscriminatePhase(model, images, bank, prompts, config.correlation_weight)
    with progress(transient=True) as bar:
        task = bar.add_task("caching features", total=len(images), note="")
        phase.cache.fill(config.batch, lambda done: bar.advance(task, done))
    plan = trainer.plan(len(images), DISCRIMINATE_EPOCHS * (config.epochs or DEFAULT_EPOCHS), 1.0)
    trainer.run_phase(phase, len(images), plan, {"recover": model.recover.state_dict()}, salt=3)


def _finish(
    trainer: Trainer, model: ReDi, images: PreparedImages, bank: NDArray[np.int64], weights: str, digest: str
) -> None:
    model.eval()
    used = trainer.budget.used
    trainer.folder.write_json(
        "run.json",
        {
            "images": len(images),
            "phases": trainer.history,
            "seconds": round(used, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "provenance": {
                "training_data_sha256": digest,
                "backbone_weights": weights,
                "seed": str(trainer.config.seed),
                "redi_edge": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        },
    )
    # Last: this file is what says that the run is finished.
    encoded = encode_bank(model, images, bank)
    trainer.folder.save(
        "model.pt",
        {
            "recover": model.recover.state_dict(),
            "frb": model.frb.state_dict(),
            "prompt_key": encoded.key.cpu(),
            "prompt_value": encoded.value.cpu(),
            "descriptors": torch.from_numpy(images.descriptors[bank]),
            "digests": images.digests,
            "prompt_names": [images.names[row] for row in bank],
        },
    )
    (trainer.folder.path / "checkpoint.pt").unlink(missing_ok=True)
    console.print(
        f"trained on {len(images)} images in {used / 60:.1f} minutes: {trainer.folder.path}\n"
        f"  next: train-eval {trainer.folder.path} DATA, or train-export {trainer.folder.path} --out redi.plan"
    )
