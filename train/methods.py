"""The methods, by the name that `train-run --method` takes."""

from __future__ import annotations

from typing import Any

from edge.errors import TrainingError
from train.ckaad.method import CKAAD, RECON
from train.config import TrainConfig
from train.detector import Method
from train.redi.method import REDI

METHODS: dict[str, Method[Any]] = {"redi": REDI, "ckaad": CKAAD, "recon": RECON}


def find_method(config: TrainConfig) -> Method[Any]:
    """Return the method that `config` names.

    Raises:
        TrainingError: there is none of this name, or it has no use for one of the settings.
    """
    method = METHODS.get(config.method)
    if method is None:
        raise TrainingError(f"unknown method {config.method!r}", f"one of {', '.join(METHODS)}")
    usual = TrainConfig(data=config.data)
    for setting in sorted({name for other in METHODS.values() for name in other.takes} - set(method.takes)):
        value = getattr(config, setting)
        if value != getattr(usual, setting):
            takers = [name for name, other in METHODS.items() if setting in other.takes]
            raise TrainingError(
                f"--method {config.method} has no use for {setting.replace('_', '-')}={value}",
                f"leave it out, or use --method {' or '.join(takers)}",
            )
    return method
