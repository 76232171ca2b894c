"""`train-run`, whole: images in, a finished run folder out.  One function to read from top to bottom."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec
import torch
from torch.utils.tensorboard import SummaryWriter

from edge import __version__
from edge.cli import console
from train.agreement import check_same, digest, on_leader, together
from train.backbones import Backbone, backbone_from_state, load_weights, stored_backbone
from train.coarse import coarse_samples, load_coarse
from train.config import TrainConfig
from train.datasets import Sample, open_dataset
from train.detector import Bank, Detector
from train.distributed import leading
from train.methods import find_method
from train.prepared import PreparedImages, prepare
from train.runfolder import RunFolder
from train.selftrain import SelfPhase
from train.trainer import Budget, StepLog, Trainer, choose_device

#: In a timed run: self-training's share of the whole.
SELF_SHARE = 0.35


def train(folder: RunFolder, config: TrainConfig, device_name: str = "auto") -> None:
    """Train `config` into `folder` on `auto`, `cpu` or `cuda`, resuming where an earlier attempt stopped.

    Raises:
        DataError: the images or the weights cannot be used.
        TrainingError: the run cannot be resumed, written or continued.
    """
    method = find_method(config)
    dataset = together(lambda: open_dataset(config.data, layout=config.layout, category=config.category))
    folder.begin(config)
    if folder.finished:
        console.print(f"{folder.path}: already trained; evaluate it with train-eval, or give --restart")
        return
    device = together(lambda: choose_device(device_name))
    check_same(device.type, "the processes' devices", "give --device cpu, or machines that all have GPUs")
    torch.manual_seed(config.seed)
    saved = folder.load("checkpoint.pt") or {}
    budget = Budget(config.minutes, float(saved.get("spent", 0.0)))
    # Before the images, which may take minutes: weights and folders that are not there are said at once.
    marked = together(lambda: coarse_samples(config.coarse, dataset, config.seed) if config.coarse else [])
    ready = _ready_backbone(folder, config)
    if ready is not None:
        # Images are prepared as the extractor wants them; one that is yet to be learnt takes them as they come.
        size = config.input
        config = msgspec.structs.replace(config, input=ready[0].input_spec(size.height, size.width))
    images = together(lambda: prepare(dataset.train, config.input, config.map, device, config.canvas))
    coarse = together(lambda: _prepared(marked, config, images))
    read = digest([*images.digests, *(coarse.digests if coarse else [])])
    check_same(read, f"the images of {config.data}", "give every machine the same images")
    with _step_log(folder) as log:
        trainer = Trainer(folder, config, budget, log, device)
        trainer.history.update(saved.get("history", {}))
        trainer.finished.update(saved.get("finished", {}))
        backbone, weights = ready or _self_trained(trainer, images)
        folder.save("backbone.pth", {"name": backbone.name, "state": backbone.state_dict(), "source": weights})
        model = method.build(config, backbone).to(device, memory_format=torch.channels_last)
        bank = method.fit(trainer, model, images, coarse)
    if leading():
        _finish(trainer, model, images, coarse, bank, weights, dataset.digest())


class _NoLog:
    """The log of a process that does not write the folder."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record nothing."""


def _step_log(folder: RunFolder) -> AbstractContextManager[StepLog]:
    return SummaryWriter(str(folder.path / "log")) if leading() else nullcontext(_NoLog())


def _prepared(marked: Sequence[Sample], config: TrainConfig, images: PreparedImages) -> PreparedImages | None:
    if not marked:
        return None
    return load_coarse(marked, images, config.input, config.map, images.device, config.canvas)


def _ready_backbone(folder: RunFolder, config: TrainConfig) -> tuple[Backbone, str] | None:
    """Return the extractor that this run already has, or was given, and its provenance; None: it is to be learnt."""
    stored = folder.load("backbone.pth")
    if stored is not None:
        return stored_backbone(stored, str(folder.path / "backbone.pth"))
    if config.weights == "self":
        return None
    state, source = on_leader(lambda: load_weights(config.weights, config.backbone))
    return backbone_from_state(state, source if config.weights == "auto" else config.weights, config.backbone), source


def _self_trained(trainer: Trainer, images: PreparedImages) -> tuple[Backbone, str]:
    config = trainer.config
    phase = SelfPhase(images)
    torch.manual_seed(config.seed)
    method = find_method(config)
    plan = trainer.plan(len(images), method.epochs, SELF_SHARE, times=method.self_epochs)
    trainer.run_phase(phase, len(images), plan, salt=1)
    # Kept as the extractor from here on.
    del trainer.finished[phase.name]
    # As it stands in a run that resumes after this phase.
    torch.manual_seed(config.seed)
    return backbone_from_state(phase.folded(), config.weights, "resnet18"), "learnt on the training images"


def _finish(
    trainer: Trainer,
    model: Detector,
    images: PreparedImages,
    coarse: PreparedImages | None,
    bank: Bank | None,
    weights: str,
    digest: str,
) -> None:
    used = trainer.budget.used
    trainer.folder.write_json(
        "run.json",
        {
            "images": len(images.names),
            "tiles": len(images),
            "coarse_images": len(coarse.names) if coarse else 0,
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
    trainer.folder.save(
        "model.pt",
        {
            "modules": {name: module.state_dict() for name, module in model.learnt.items()},
            "bank": bank
            and {
                "features": bank.features,
                "descriptors": torch.from_numpy(bank.descriptors),
                "names": bank.names,
            },
            "digests": [*images.digests, *(coarse.digests if coarse else ())],
        },
    )
    (trainer.folder.path / "checkpoint.pt").unlink(missing_ok=True)
    console.print(
        f"trained on {len(images.names)} images in {used / 60:.1f} minutes: {trainer.folder.path}\n"
        f"  next: train-eval {trainer.folder.path} DATA, or train-export {trainer.folder.path} --out redi.plan"
    )
