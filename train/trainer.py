"""Two-stage training of ReDi: recover first, then the Feature Recovery Block on cached features.

Everything random is drawn from `(seed, phase, step)`, so a run that was killed and resumed takes the very steps it
would have taken.  What does not change is computed once: `X`, `H`, prompts, and in stage 2, where `phi` and recover
are frozen, the features `F_X` and `R_Y` of every image.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.cli import console, progress
from edge.errors import TrainingError
from train.config import TrainConfig
from train.runfolder import RunFolder

#: Seconds between two checkpoints: the most that a kill -9 costs.
CHECKPOINT_SECONDS = 20.0


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


class Phase(Protocol):
    """One stage of training: what `run_phase` drives."""

    name: str
    module: nn.Module

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return the scalar loss of the images in these rows."""


def choose_device(name: str) -> torch.device:
    """Return the device called `auto`, `cpu` or `cuda`; auto takes a GPU where PyTorch finds one.

    Raises:
        TrainingError: `cuda` was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError(f"--device {name}: PyTorch {torch.__version__} finds no CUDA GPU here", "use --device cpu")
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

    def plan(self, count: int, epochs: float, share: float) -> Plan:
        """Plan `epochs` passes over `count` images, or in a timed run, `share` of the time that is left."""
        if self.budget.minutes is not None:
            return Plan(seconds=max(0.0, self.budget.left() * share))
        return Plan(steps=max(1, round(epochs * steps_per_epoch(count, self.config.batch))))

    def run_phase(self, phase: Phase, count: int, plan: Plan, others: Mapping[str, Any], salt: int) -> None:
        """Train `phase.module` to the end of its plan, resuming where a checkpoint of this phase stands.

        A resumed phase keeps the plan it began with.  `others` is state that the checkpoint must carry along
        (finished modules); `salt` keeps the phases' random draws apart.

        Raises:
            TrainingError: the loss stopped being finite.
        """
        optimiser = torch.optim.Adam(phase.module.parameters(), self.config.learning_rate, betas=(0.5, 0.999))
        saved = self.folder.load("checkpoint.pt")
        step, earlier = 0, 0.0
        if saved is not None and saved["phase"] == phase.name:
            phase.module.load_state_dict(saved["module"])
            optimiser.load_state_dict(saved["optimiser"])
            step, earlier, plan = int(saved["step"]), float(saved["elapsed"]), Plan(**saved["plan"])
            console.print(f"{phase.name}: resuming at step {step}")
        phase.module.train()
        per_epoch = steps_per_epoch(count, self.config.batch)
        smoothed = math.nan
        seed = (self.config.seed, salt)
        begin = last_save = time.monotonic()

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
                    "optimiser": optimiser.state_dict(),
                    "others": dict(others),
                    "spent": self.budget.used,
                    "history": self.history,
                },
            )

        with progress() as bar:
            task = bar.add_task(phase.name, total=plan.steps or math.ceil(plan.seconds or 0), note="")
            rows = batches(count, self.config.batch, seed, step)
            try:
                while (fraction := plan.fraction(step, elapsed())) < 1:
                    rate = learning_rate(fraction, self.config.learning_rate)
                    value = self._step(phase, optimiser, next(rows), np.random.default_rng([*seed, 1, step]), rate)
                    if not math.isfinite(value):
                        raise TrainingError(
                            f"{phase.name}: the loss became {value} at step {step}",
                            "train in a new --out with a lower --learning-rate",
                        )
                    smoothed = value if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * value
                    step += 1
                    if step % 5 == 0:
                        self.log.add_scalar(f"loss/{phase.name}", value, step)
                        self.log.add_scalar(f"rate/{phase.name}", rate, step)
                    done = step if plan.steps is not None else min(elapsed(), plan.seconds or 0)
                    bar.update(task, completed=int(done), note=f"epoch {step / per_epoch:.1f} loss {smoothed:.4f}")
                    if time.monotonic() - last_save > CHECKPOINT_SECONDS:
                        checkpoint()
                        last_save = time.monotonic()
            except KeyboardInterrupt:
                checkpoint()
                console.print("stopped; the same command resumes here")
                raise
            bar.update(task, completed=bar.tasks[0].total)
        self.history[phase.name] = {"steps": step, "epochs": round(step / per_epoch, 2), "loss": round(smoothed, 5)}
        checkpoint()
        phase.module.eval()

    def _step(
        self,
        phase: Phase,
        optimiser: torch.optim.Optimizer,
        rows: NDArray[np.int64],
        rng: np.random.Generator,
        rate: float,
    ) -> float:
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=self._half or torch.bfloat16, enabled=self._half is not None):
            loss = phase.loss(rows, rng)
        optimiser.zero_grad(set_to_none=True)
        # Only fp16 needs scaling; disabled, the scaler passes everything through.
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(phase.module.parameters(), self.config.clip_norm)
        self._scaler.step(optimiser)
        self._scaler.update()
        return float(loss.detach())
