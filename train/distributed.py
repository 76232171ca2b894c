"""One training over several processes, started by `torchrun`; everything here does nothing in a single process.

Every process holds the whole model and reads all images.  The batch of a step is the one that a single process would
take, with the same random draws; each process keeps its `share` of the rows, batch norms see the whole batch
(`train/batchnorm.py`), and gradients are summed.  So the number of processes changes the speed and, but for rounding,
nothing else.

What a phase does: draw for the whole batch, then `share` the rows and the draws, and return the mean over its own
rows.  A phase that does not share computes the whole batch everywhere, which is as right, only slower.

Process 0 alone writes the run's folder, logs and prints.  A process that fails ends all of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from edge.cli import console
from edge.errors import EdgeError, TrainingError
from edge.files import utf8_text

#: Seconds that one process waits for the others before it gives the run up: reading the images may differ by minutes.
PEER_SECONDS = 600.0

Rows = TypeVar("Rows", np.ndarray[Any, Any], Tensor)

_stop_requested = False
_stepping = False
_store: Store | None = None


def world() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def leading() -> bool:
    """Whether this process writes the run's folder and prints."""
    return rank() == 0


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, for training on `auto`, `cpu` or `cuda`; alone, do nothing.

    Collectives of CPU tensors go through gloo, those of CUDA tensors through NCCL.

    Raises:
        TrainingError: the others cannot be reached, or are lost later on.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    wait = timedelta(seconds=PEER_SECONDS)
    # Before anything is said: what all processes would say is said once.
    console.quiet = os.environ.get("RANK") != "0"
    with peers():
        _store, number, count = next(rendezvous("env://", timeout=wait))
        dist.init_process_group(
            backend, store=PrefixStore("collectives", _store), rank=number, world_size=count, timeout=wait
        )
    # A process that was started to ignore Ctrl-C goes on ignoring it.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, _on_signal) for number in numbers}
    try:
        yield
        dist.destroy_process_group()
    except BaseException as error:
        # torchrun ends what is left when the first process fails: let this one say why it ends, and end by itself.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, EdgeError):
            _tell(error)
        elif isinstance(error, Exception):
            console.quiet = False
        raise
    for number, handler in handlers.items():
        signal.signal(number, handler)


def share(*values: Rows) -> tuple[Rows, ...]:
    """Return this process's part of arrays or tensors whose first axis is the batch: all of it in a single process."""
    return tuple(value[slice(*_part(len(value)))] for value in values)


def weight(count: int) -> float:
    """Return what the mean over this process's share of `count` rows counts for in the mean over all of them."""
    begin, end = _part(count)
    return (end - begin) / count


def _part(count: int) -> tuple[int, int]:
    return count * rank() // world(), count * (rank() + 1) // world()


def check_batch(batch: int) -> None:
    """Refuse batches that do not give every process an image.

    Raises:
        TrainingError: there are fewer images than processes.
    """
    if batch < world():
        raise TrainingError(
            f"batches of {batch} images do not give each of {world()} processes one",
            "start fewer processes, or give a larger --batch and enough images",
        )


def reduce_gradients(module: nn.Module) -> None:
    """Sum the gradients of `module` over all processes, each of which has weighed its loss with `weight`."""
    if world() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    sum_in_place(flat)
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def total(value: float) -> float:
    """Return the sum of `value` over all processes."""
    return value if world() == 1 else float(sum_in_place(torch.tensor([value], dtype=torch.float64)))


def synchronise(module: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0, bit by bit."""
    if world() > 1:
        with peers():
            for tensor in module.state_dict().values():
                # Collectives want dense rows; weights are kept channels last.
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


@contextmanager
def stepping() -> Iterator[Callable[[float], float]]:
    """Take steps: gives a function that turns a time on this process's clock into that of process 0, once a step.

    Within, Ctrl-C, and in several processes SIGTERM, wait for that function, which raises KeyboardInterrupt in all
    processes at once, so that all stand at the same step.
    """
    global _stepping, _stop_requested

    def agreed(seconds: float) -> float:
        if world() == 1:
            if _stop_requested:
                raise KeyboardInterrupt
            return seconds
        told = sum_in_place(torch.tensor([seconds if leading() else 0.0, float(_stop_requested)], dtype=torch.float64))
        if told[1] > 0:
            raise KeyboardInterrupt
        return float(told[0].item())

    _stepping, _stop_requested = True, False
    # A single process waits too: stopped within a step, weights would have moved that the step's number does not count.
    alone = world() == 1 and threading.current_thread() is threading.main_thread()
    own = alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if own:
        signal.signal(signal.SIGINT, _on_signal)
    try:
        yield agreed
    finally:
        _stepping = False
        if own:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if own and _stop_requested:
        raise KeyboardInterrupt


def sum_in_place(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all processes, in place, and return it."""
    with peers():
        dist.all_reduce(tensor)
    return tensor


class _LostPeerError(TrainingError):
    """Another process of this run is gone."""


@contextmanager
def peers() -> Iterator[None]:
    """Talk to the other processes: what goes wrong there is theirs, or the network's."""
    try:
        yield
    except RuntimeError as error:
        # Without the place in the library's source that comes first, and the advice that comes last.
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip()).split(". ")[0].splitlines()[0][:200]
        try:
            if _store is not None and _store.check(["failed"]):
                reason = _store.get("failed").decode("utf-8", "replace")
        except RuntimeError:
            # Who kept the reason is gone as well.
            pass
        raise _LostPeerError(
            f"another process of this run was lost: {reason}",
            "see what it says, on its machine; the same command resumes from the last checkpoint",
        ) from error


def _tell(error: EdgeError) -> None:
    """Let the first process of each machine that ends with this error print it, and the others be silent."""
    host, problem, lost = socket.gethostname(), utf8_text(error.problem), isinstance(error, _LostPeerError)
    name = "lost" if lost else hashlib.sha256(problem.encode()).hexdigest()
    try:
        if _store is not None:
            if not lost:
                _store.set("failed", f"process {rank()} on {host}: {problem}")
            console.quiet = _store.add(f"told/{host}/{name}", 1) > 1
    except RuntimeError:
        console.quiet = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _stop_requested
    if _stepping:
        _stop_requested = True
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise _LostPeerError(
            "ended by SIGTERM, as by torchrun when another process of this run was lost",
            "see what the other says; the same command resumes from the last checkpoint",
        )
