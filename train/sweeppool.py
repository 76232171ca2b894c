"""Where a sweep's runs are executed: here one after the other, or on Ray beside each other."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

from edge.errors import TrainingError
from train.sweep import Job
from train.sweepjob import STOP_SECONDS, Outcome, execute


class Pool(Protocol):
    """Executes up to `width` jobs at a time."""

    width: int

    def start(self, job: Job) -> None:
        """Begin a job."""
        ...

    def wait(self) -> Outcome:
        """Return how the next of the begun jobs ended."""
        ...

    def stop(self) -> list[Outcome]:
        """Stop the begun jobs after their checkpoints, and return how they ended."""
        ...


class Here:
    """One job at a time, in this process's place."""

    width = 1

    def __init__(self) -> None:
        self._begun: deque[Job] = deque()

    def start(self, job: Job) -> None:
        """Begin a job."""
        self._begun.append(job)

    def wait(self) -> Outcome:
        """Return how it ended."""
        return execute(self._begun.popleft())

    def stop(self) -> list[Outcome]:
        """Return nothing: `wait` has seen to it."""
        return []


class RayPool(AbstractContextManager["RayPool"]):
    """Jobs as Ray tasks, on this machine or on a cluster whose machines share the folders.

    Args:
        address: of the cluster; None starts Ray here, for this sweep alone, on the loopback interface.
        width: jobs at a time; None takes what the cluster's CPUs hold.
        threads: CPU threads of a job.
        gpus: share of GPUs of a job; None takes one where there are any.

    Raises:
        TrainingError: Ray cannot be started or reached.
    """

    def __init__(self, address: str | None, width: int | None, threads: int, gpus: float | None) -> None:
        # Read when Ray is imported.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address is None:
            # Without a cluster to join, Ray's servers need no other interface than loopback.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            # For this sweep alone; otherwise Ray would keep one in the user's home.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray: Any = importlib.import_module("ray")
        self._ray = ray
        try:
            if address is None:
                ray.init(
                    address="local",
                    num_cpus=(width or 1) * threads,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            where = "here" if address is None else f"at {address}"
            raise TrainingError(f"Ray cannot be used {where}: {error}", "check the address, or use --jobs 1") from error
        resources = ray.cluster_resources()
        self.width = width or max(1, int(resources.get("CPU", 1) // threads))
        share = gpus if gpus is not None else float(resources.get("GPU", 0) >= 1)
        self._task = ray.remote(num_cpus=threads, num_gpus=share, max_retries=2)(execute)
        self._begun: dict[Any, Job] = {}

    def start(self, job: Job) -> None:
        """Begin a job."""
        self._begun[self._task.remote(job)] = job

    def wait(self) -> Outcome:
        """Return how the next of the begun jobs ended."""
        ready, _ = self._ray.wait(list(self._begun), num_returns=1)
        return self._ended(ready[0])

    def stop(self) -> list[Outcome]:
        """Stop the begun jobs after their checkpoints, and return how they ended."""
        for task in self._begun:
            self._ray.cancel(task)
        if self._begun:
            # Longer than a run is given, so that what it says is heard.
            self._ray.wait(list(self._begun), num_returns=len(self._begun), timeout=STOP_SECONDS + 10)
        return [self._ended(task) for task in list(self._begun)]

    def _ended(self, task: Any) -> Outcome:
        job = self._begun.pop(task)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(task, timeout=1.0)
            return outcome
        except (errors.TaskCancelledError, errors.GetTimeoutError):
            return Outcome.of(job, "interrupted")
        except errors.RayError as error:
            return Outcome.of(job, "failed", f"Ray lost the run: {str(error).strip().splitlines()[0]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()
