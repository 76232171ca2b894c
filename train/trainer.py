"""The training loop that every method's phases run in.

Everything random is drawn from `(seed, phase, step)`, so a run that was killed and resumed takes the very steps it
would have taken.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.cli import console, progress
from edge.errors import TrainingError
from train.agreement import on_leader
from train.batchnorm import share_batch_norms
from train.config import TrainConfig
from train.distributed import check_batch, reduce_gradients, stepping, synchronise, total, weight, world
from train.runfolder import RunFolder

#: Seconds between two checkpoints, the most that a kill -9 costs; where one takes long, this many times as long.
CHECKPOINT_SECONDS, CHECKPOINT_TIMES = 20.0, 20.0


class StepLog(Protocol):
    """Where a scalar per step goes; TensorBoard's SummaryWriter is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one value."""


@dataclass
class Budget:
    """Wall time left for the run, or epochs; `spent` carries over what earlier, killed attempts used, in seconds."""

    minutes: float | None
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds used so far, earlier attempts included."""
        return self.spent + time.monotonic() - self.started

    def left(self) -> float:
        """Seconds left; infinite without a time budget."""
        return math.inf if self.minutes is None else self.minutes * 60 - self.used


#: A scalar loss of the images in these rows; whatever is random in it is drawn from the generator.
Loss = Callable[[NDArray[np.int64], np.random.Generator], Tensor]


@dataclass(frozen=True)
class Update:
    """One optimiser's part of a step: Adam moves `module` against `loss`, at the schedule's share of rate `peak`."""

    module: nn.Module
    loss: Loss
    peak: float


class Phase(Protocol):
    """One stage of training: what `run_phase` drives.  `module` holds all that it trains.

    Over several processes every one calls `loss` with the whole batch and the same generator: draw for all rows, then
    keep `train.distributed.share(rows, draws)`, and return the mean over those.
    """

    name: str
    module: nn.Module

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return the scalar loss of the images in these rows."""
        ...

    def updates(self, peak: float) -> list[Update]:
        """Return the updates that make a step, in order; `peak` is the run's learning rate."""
        return [Update(self.module, self.loss, peak)]


def choose_device(name: str) -> torch.device:
    """Return the device called `auto`, `cpu` or `cuda`; auto takes a GPU where PyTorch finds one.

    Of several processes on a machine, each gets a GPU of its own.

    Raises:
        TrainingError: `cuda` was asked for and there is none, or none for this process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError(f"--device {name}: PyTorch {torch.__version__} finds no CUDA GPU here", "use --device cpu")
    if name == "cuda" and world() > 1:
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place >= torch.cuda.device_count():
            raise TrainingError(
                f"process {place} of this machine finds no GPU for itself: there are {torch.cuda.device_count()}",
                "start one process per GPU (--nproc-per-node), or use --device cpu",
            )
        torch.cuda.set_device(place)
        return torch.device("cuda", place)
    return torch.device(name)


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """Return the number format that training gains from here: bf16 with tensor cores or AMX, else fp16, or none."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if has_amx() else None


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 tiles in hardware."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False


@dataclass(frozen=True)
class Plan:
    """How long a phase lasts: a number of `steps`, or `seconds` of wall time."""

    steps: int | None = None
    seconds: float | None = None

    def fraction(self, step: int, elapsed: float) -> float:
        """Return how much of the phase is over after this many steps and seconds, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        # One step is taken even where no time is left.
        return 0.0 if step == 0 else min(1.0, elapsed / max(self.seconds or 0.0, 1e-9))


def learning_rate(fraction: float, peak: float) -> float:
    """Linear warm-up over the first 3 % of a phase, then a cosine down to 2 % of `peak`."""
    warm = min(1.0, fraction / 0.03 + 0.02)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))


def steps_per_epoch(count: int, batch: int) -> int:
    """Return how many full batches `count` images make, at least one."""
    return max(1, count // min(batch, count))


def batches(count: int, batch: int, seed: Sequence[int], start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield batches of rows without end, from step `start` on, each epoch a permutation drawn from `(seed, epoch)`.

    Sets smaller than a batch are drawn whole.
    """
    size = min(batch, count)
    per_epoch = steps_per_epoch(count, batch)
    order = np.empty(0, np.int64)
    for step in itertools.count(start):
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == start:
            order = np.random.default_rng([*seed, epoch]).permutation(count).astype(np.int64)
        yield order[place * size : (place + 1) * size]


class Trainer:
    """Runs phases over a run folder, with checkpoints, progress and logs."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, budget: Budget, log: StepLog, device: torch.device
    ) -> None:
        self.folder, self.config, self.budget, self.log, self.device = folder, config, budget, log, device
        self._half = mixed_precision(device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._half is torch.float16)
        self.history: dict[str, Any] = {}
        #: Weights of the phases that are over, by name: every checkpoint carries them along.
        self.finished: dict[str, Any] = {}

    def plan(self, count: int, usual_epochs: int, share: float, *, times: float = 1.0) -> Plan:
        """Plan `times` the run's steps or its epochs over `count` images; in a timed run, `share` of the time left.

        `usual_epochs` are those of a run that states no budget.
        """
        if self.budget.minutes is not None:
            return Plan(seconds=on_leader(lambda: max(0.0, self.budget.left() * share)))
        steps = self.config.steps or (self.config.epochs or usual_epochs) * steps_per_epoch(count, self.config.batch)
        return Plan(steps=max(1, round(times * steps)))

    def run_phase(self, phase: Phase, count: int, plan: Plan, salt: int) -> None:
        """Train `phase.module` to the end of its plan, resuming where a checkpoint of this phase stands.

        A resumed phase keeps the plan it began with, and one that was over is only loaded.  `salt` keeps the phases'
        random draws apart.

        Raises:
            TrainingError: the checkpoint does not fit, or a loss stopped being finite.
        """
        check_batch(min(self.config.batch, count))
        share_batch_norms(phase.module)
        updates = phase.updates(self.config.learning_rate)
        optimisers = [torch.optim.Adam(u.module.parameters(), u.peak, betas=(0.5, 0.999)) for u in updates]
        step, earlier = 0, 0.0
        with self._checkpoint_fits():
            if phase.name in self.finished:
                phase.module.load_state_dict(self.finished[phase.name])
                phase.module.eval()
                return
            saved = self.folder.load("checkpoint.pt")
            if saved is not None and saved["phase"] == phase.name:
                phase.module.load_state_dict(saved["module"])
                for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                    optimiser.load_state_dict(state)
                step, earlier, plan = int(saved["step"]), float(saved["elapsed"]), Plan(**saved["plan"])
                console.print(f"{phase.name}: resuming at step {step}")
        synchronise(phase.module)
        phase.module.train()
        per_epoch = steps_per_epoch(count, self.config.batch)
        smoothed = math.nan
        seed = (self.config.seed, salt)
        begin = last_save = time.monotonic()
        saving = 0.0

        def elapsed() -> float:
            return earlier + time.monotonic() - begin

        def checkpoint() -> None:
            self.folder.save(
                "checkpoint.pt",
                {
                    "phase": phase.name,
                    "step": step,
                    "elapsed": elapsed(),
                    "plan": asdict(plan),
                    "module": phase.module.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                    "finished": self.finished,
                    "spent": self.budget.used,
                    "history": self.history,
                },
            )

        with progress() as bar, stepping() as agreed:
            task = bar.add_task(phase.name, total=plan.steps or math.ceil(plan.seconds or 0), note="")
            rows = batches(count, self.config.batch, seed, step)
            try:
                while (fraction := plan.fraction(step, agreed(elapsed()))) < 1:
                    rng = np.random.default_rng([*seed, 1, step])
                    values = self._step(phase, updates, optimisers, next(rows), rng, fraction)
                    if not all(map(math.isfinite, values)):
                        raise TrainingError(
                            f"{phase.name}: the loss became {values} at step {step}",
                            "train in a new --out with a lower --learning-rate",
                        )
                    # The last update's: that of what is exported.
                    value = values[-1]
                    smoothed = value if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * value
                    step += 1
                    if step % 5 == 0:
                        self._log(phase.name, values, learning_rate(fraction, updates[-1].peak), step)
                    done = step if plan.steps is not None else min(elapsed(), plan.seconds or 0)
                    bar.update(task, completed=int(done), note=f"epoch {step / per_epoch:.1f} loss {smoothed:.4f}")
                    if (now := time.monotonic()) - last_save > max(CHECKPOINT_SECONDS, CHECKPOINT_TIMES * saving):
                        checkpoint()
                        last_save = time.monotonic()
                        saving = last_save - now
            except KeyboardInterrupt:
                checkpoint()
                console.print("stopped; the same command resumes here")
                raise
            bar.update(task, completed=bar.tasks[0].total)
        self.history[phase.name] = {"steps": step, "epochs": round(step / per_epoch, 2), "loss": round(smoothed, 5)}
        checkpoint()
        phase.module.eval()
        self.finished[phase.name] = phase.module.state_dict()

    def _step(
        self,
        phase: Phase,
        updates: Sequence[Update],
        optimisers: Sequence[torch.optim.Optimizer],
        rows: NDArray[np.int64],
        rng: np.random.Generator,
        fraction: float,
    ) -> list[float]:
        """Take the phase's updates in order and return their losses."""
        values = []
        for update, optimiser in zip(updates, optimisers, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(fraction, update.peak)
            with torch.autocast(self.device.type, dtype=self._half or torch.bfloat16, enabled=self._half is not None):
                loss = update.loss(rows, rng)
            optimiser.zero_grad(set_to_none=True)
            # Only fp16 needs scaling; disabled, the scaler passes everything through.
            self._scaler.scale(loss * weight(len(rows))).backward()  # type: ignore[no-untyped-call]
            reduce_gradients(update.module)
            self._scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(update.module.parameters(), self.config.clip_norm)
            self._scaler.step(optimiser)
            values.append(total(float(loss.detach()) * weight(len(rows))))
        self._scaler.update()
        return values

    def _log(self, name: str, values: Sequence[float], rate: float, step: int) -> None:
        for place, value in enumerate(values):
            # The last one has the phase's own name, so that runs of all methods can be laid side by side.
            tag = f"loss/{name}" if place == len(values) - 1 else f"loss/{name}/{place}"
            self.log.add_scalar(tag, value, step)
        self.log.add_scalar(f"rate/{name}", rate, step)

    @contextmanager
    def _checkpoint_fits(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            path = self.folder.path / "checkpoint.pt"
            raise TrainingError(
                f"{path}: damaged, or of another release ({type(error).__name__})",
                f"delete {path} and resume, or use --restart",
            ) from error
