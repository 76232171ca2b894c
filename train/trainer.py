"""Two-stage training of ReDi: recover first, then the Feature Recovery Block on cached features.

Everything random is drawn from `(seed, phase, step)`, so a run that was killed and resumed takes the very steps it
would have taken.  What does not change is computed once: `X`, `H`, prompts, and in stage 2, where `phi` and recover
are frozen, the features `F_X` and `R_Y` of every image.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


def precision_context(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where this device gains from it: bf16 on CUDA and on CPUs with AMX, else nothing."""
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=dtype)
    if device.type == "cpu" and has_amx():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 tiles in hardware."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine down to 2 % of `peak`."""
    warm = min(1.0, (step + 1) / max(1.0, 0.03 * steps))
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / max(1, steps))))


def batches(count: int, batch: int, steps: int, seed: Sequence[int], start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield `steps - start` batches of rows, each epoch a fresh permutation drawn from `(seed, epoch)`.

    Sets smaller than a batch are drawn whole.
    """
    size = min(batch, count)
    per_epoch = max(1, count // size)
    order = np.empty(0, np.int64)
    for step in range(start, steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == start:
            order = np.random.default_rng([*seed, epoch]).permutation(count).astype(np.int64)
        yield order[place * size : (place + 1) * size]


class Trainer:
    """Runs phases over a run folder, with checkpoints, progress and logs."""

    def __init__(self, folder: RunFolder, config: TrainConfig, budget: Budget, log: StepLog) -> None:
        self.folder, self.config, self.budget, self.log = folder, config, budget, log
        self.history: dict[str, Any] = {}

    def measure_step(self, phase: Phase, count: int) -> float:
        """Return seconds per step, from a few trial steps whose effect is undone."""
        state = {key: value.clone() for key, value in phase.module.state_dict().items()}
        optimiser = torch.optim.Adam(phase.module.parameters(), 0.0)
        seconds = []
        for rows in batches(count, self.config.batch, 6, (0,)):
            begin = time.monotonic()
            self._step(phase, optimiser, rows, np.random.default_rng(0), 0.0)
            seconds.append(time.monotonic() - begin)
        phase.module.load_state_dict(state)
        phase.module.zero_grad(set_to_none=True)
        # The first step pays for the allocator and the kernels' own set-up.
        return float(np.median(seconds[1:]))

    def plan_steps(self, phase: Phase, count: int, epochs: float | None, seconds: float) -> int:
        """Return how many steps fit: `epochs` passes over `count` images, or as many as `seconds` hold."""
        per_epoch = max(1, count // min(self.config.batch, count))
        if epochs is not None:
            return max(1, round(epochs * per_epoch))
        step = self.measure_step(phase, count)
        # 4 % goes to checkpoints and the log.
        return max(1, int(0.96 * seconds / step))

    def run_phase(
        self, phase: Phase, count: int, plan: Callable[[], int], others: Mapping[str, Any], salt: int
    ) -> None:
        """Train `phase.module` to the end of its plan, resuming where a checkpoint of this phase stands.

        `plan` gives the number of steps and is asked only by a fresh phase.  `others` is state that the checkpoint must
        carry along (finished modules).

        Raises:
            TrainingError: the loss stopped being finite.
        """
        optimiser = torch.optim.Adam(phase.module.parameters(), self.config.learning_rate, betas=(0.5, 0.999))
        saved = self.folder.load("checkpoint.pt")
        if saved is not None and saved["phase"] == phase.name:
            phase.module.load_state_dict(saved["module"])
            optimiser.load_state_dict(saved["optimiser"])
            start, steps = int(saved["step"]), int(saved["steps"])
            console.print(f"{phase.name}: resuming at step {start} of {steps}")
        else:
            start, steps = 0, plan()
        phase.module.train()
        per_epoch = max(1, count // min(self.config.batch, count))
        smoothed, last_save = math.nan, time.monotonic()
        seed = (self.config.seed, salt)

        def checkpoint(done: int) -> None:
            self.folder.save(
                "checkpoint.pt",
                {
                    "phase": phase.name,
                    "step": done,
                    "steps": steps,
                    "module": phase.module.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "others": dict(others),
                    "spent": self.budget.used,
                    "history": self.history,
                },
            )

        with progress() as bar:
            task = bar.add_task(phase.name, total=steps, completed=start, note="")
            step = start
            try:
                for rows in batches(count, self.config.batch, steps, seed, start):
                    rng = np.random.default_rng([*seed, 1, step])
                    rate = learning_rate(step, steps, self.config.learning_rate)
                    value = self._step(phase, optimiser, rows, rng, rate)
                    if not math.isfinite(value):
                        raise TrainingError(
                            f"{phase.name}: the loss became {value} at step {step}",
                            "resume from the last checkpoint with a lower --learning-rate in a new --out",
                        )
                    smoothed = value if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * value
                    step += 1
                    if step % 5 == 0 or step == steps:
                        self.log.add_scalar(f"loss/{phase.name}", value, step)
                        self.log.add_scalar(f"rate/{phase.name}", rate, step)
                    epoch = f"epoch {step / per_epoch:.1f}/{steps / per_epoch:.1f}"
                    bar.update(task, completed=step, note=f"{epoch} loss {smoothed:.4f}")
                    if time.monotonic() - last_save > CHECKPOINT_SECONDS:
                        checkpoint(step)
                        last_save = time.monotonic()
            except KeyboardInterrupt:
                checkpoint(step)
                console.print("stopped; the same command resumes here")
                raise
        self.history[phase.name] = {
            "steps": steps,
            "epochs": round(steps / per_epoch, 2),
            "loss": round(smoothed, 5),
        }
        checkpoint(steps)
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
        with precision_context(next(phase.module.parameters()).device):
            loss = phase.loss(rows, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(phase.module.parameters(), self.config.clip_norm)
        optimiser.step()
        return float(loss.detach())
