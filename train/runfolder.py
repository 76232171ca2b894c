"""A run's folder: settings, checkpoint, finished model.  Every file is replaced atomically, so kill -9 costs little.

config.json      the settings, written first
backbone.pth     the folded extractor, once it is loaded or learnt
checkpoint.pt    where training stands: phase, step, weights, optimiser
model.pt         the finished model
run.json         what happened: images, steps, losses, seconds, provenance
log/             TensorBoard
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge.errors import TrainingError
from train.config import TrainConfig


class RunFolder:
    """Reads and writes one run's folder.

    Raises:
        TrainingError: the folder cannot be made or written, or holds something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return (self.path / "model.pt").is_file()

    @property
    def started(self) -> bool:
        """Whether settings were written."""
        return (self.path / "config.json").is_file()

    @property
    def _learnt(self) -> bool:
        """Whether there is anything that other settings would spoil."""
        return any((self.path / name).is_file() for name in ("backbone.pth", "checkpoint.pt", "model.pt"))

    def begin(self, config: TrainConfig) -> None:
        """Make the folder and record `config`, or check that it is the one already recorded.

        Settings of an attempt that ended before anything was learnt, such as one with a wrong `--weights`, bind nobody.
        """
        if self.started and self._learnt:
            recorded = self.config()
            for field in TrainConfig.__struct_fields__:
                old, new = getattr(recorded, field), getattr(config, field)
                if old != new:
                    raise TrainingError(
                        f"{self.path}: this run was started with {field}={old}, not {new}",
                        "use the same settings to resume, another --out to start afresh, or --restart to discard it",
                    )
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.started and any(self.path.iterdir()):
                raise TrainingError(f"{self.path}: not empty and not a run", "choose another --out")
            self._replace("config.json", msgspec.json.format(msgspec.json.encode(config), indent=2))
        except OSError as error:
            raise TrainingError(f"{self.path}: {error.strerror}", "choose another --out") from error

    def config(self) -> TrainConfig:
        """Read the recorded settings."""
        path = self.path / "config.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=TrainConfig)
        except FileNotFoundError:
            raise TrainingError(f"{self.path}: not a training run, config.json is missing") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise TrainingError(f"{path}: {error}", "the settings file is damaged; train again") from error

    def save(self, name: str, value: dict[str, Any]) -> None:
        """Save a dictionary of tensors and plain values as `name`, atomically."""
        temporary = self.path / f".{name}.tmp"
        try:
            with open(temporary, "wb") as file:
                torch.save(value, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(
                f"{self.path / name}: cannot be written, {error}", "free some space and resume"
            ) from error

    def load(self, name: str) -> dict[str, Any] | None:
        """Load what `save` wrote, None where there is nothing."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TrainingError(
                f"{path}: damaged ({type(error).__name__})", f"delete {path} and resume, or use --restart"
            ) from error
        if not isinstance(value, dict):
            raise TrainingError(f"{path}: not written by train-run", f"delete {path} and resume, or use --restart")
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a readable JSON file, atomically."""
        self._replace(name, msgspec.json.format(msgspec.json.encode(value), indent=2))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object."""
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError) as error:
            raise TrainingError(f"{self.path / name}: {error}") from error

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self.path / f".{name}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, self.path / name)
