"""What the processes of one training decide together: errors, settings, and what process 0 alone reads and writes.

In a single process all of this is plain calls.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from edge.cli import console
from edge.errors import DataError, EdgeError, TrainingError
from train.config import TrainConfig
from train.distributed import leading, peers, rank, world
from train.runfolder import RunFolder

T = TypeVar("T")


def on_leader(work: Callable[[], T]) -> T:
    """Return in every process what `work` returns in process 0: tensors, plain values, and lists and maps of them.

    Raises:
        EdgeError: what it raised there.
    """
    if world() == 1:
        return work()
    answer: dict[str, Any] = {}
    if leading():
        try:
            answer = {"value": work()}
        except EdgeError as error:
            answer = _as_plain(error)
    answer = _unpack(_broadcast(_pack(answer)))
    if "value" not in answer:
        raise _from_plain(answer)
    value: T = answer["value"]
    return value


def together(work: Callable[[], T]) -> T:
    """Return `work()`, which every process does for itself; where it fails in one, it fails in all.

    Raises:
        EdgeError: what it raised in the first process where it failed.
    """
    if world() == 1:
        return work()
    results: list[T] = []
    plain: dict[str, Any] = {}
    try:
        results.append(work())
    except EdgeError as error:
        plain = _as_plain(error)
    answers = _gather(plain)
    failed = [answer for answer in answers if answer]
    if failed:
        # What is wrong everywhere needs no place.
        raise _from_plain(failed[0], name_it=len({answer.get("problem") for answer in answers}) > 1)
    return results[0]


def check_same(value: str, what: str, hint: str) -> None:
    """Check that all processes hold the same `value`, a digest of `what`.

    Raises:
        TrainingError: one holds another than process 0; it is named with its machine.
    """
    if world() == 1:
        return
    answers = _gather({"value": value, "host": socket.gethostname()})
    for number, answer in enumerate(answers):
        if answer["value"] != answers[0]["value"]:
            raise TrainingError(
                f"{what} differ: process {number} on {answer['host']}, process 0 on {answers[0]['host']}", hint
            )


def digest(texts: Sequence[str]) -> str:
    """Return one SHA-256 (hex) for a list of texts."""
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


class SharedRunFolder(RunFolder):
    """A run's folder that process 0 alone reads and writes: the other machines need not see it."""

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return on_leader(lambda: RunFolder(self.path).finished)

    def discard(self) -> None:
        """Remove what an earlier run left here."""
        on_leader(self._discard)

    def _discard(self) -> None:
        if self.started:
            console.print(f"{self.path}: discarding the earlier run")
            shutil.rmtree(self.path)

    def begin(self, config: TrainConfig) -> None:
        """Make the folder and record `config`, or check that it is the one already recorded."""
        on_leader(lambda: super(SharedRunFolder, self).begin(config))

    def load(self, name: str) -> dict[str, Any] | None:
        """Load what `save` wrote, None where there is nothing."""
        return on_leader(lambda: super(SharedRunFolder, self).load(name))

    def save(self, name: str, value: dict[str, Any]) -> None:
        """Save a dictionary of tensors and plain values as `name`, atomically."""
        if leading():
            super().save(name, value)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a readable JSON file, atomically."""
        if leading():
            super().write_json(name, value)


def _broadcast(data: bytes) -> bytes:
    """Return process 0's bytes in every process."""
    with peers():
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        payload = torch.empty(int(length), dtype=torch.uint8)
        if leading():
            payload.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(payload, 0)
    return payload.numpy().tobytes()


def _gather(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every process's answer, by number."""
    data = torch.frombuffer(bytearray(_pack(answer)), dtype=torch.uint8)
    with peers():
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(parts, nn.functional.pad(data, (0, longest - len(data))))
    return [_unpack(part[: int(length)].numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]


def _pack(value: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(value), file)
    return file.getvalue()


def _unpack(data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return value


def _as_plain(error: EdgeError) -> dict[str, Any]:
    return {
        "code": error.exit_code,
        "problem": error.problem,
        "hint": error.hint,
        "where": f"process {rank()} on {socket.gethostname()}",
    }


def _from_plain(answer: Mapping[str, Any], *, name_it: bool = False) -> EdgeError:
    kind = DataError if answer["code"] == DataError.exit_code else TrainingError
    return kind(f"{answer['where']}: {answer['problem']}" if name_it else answer["problem"], answer["hint"])
