"""What the CUDA runtime asks of the network between *before* and *after*."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edge.inspection.cuda.device import Stream


class Engine(Protocol):
    """A compiled core on the device.  Inputs and outputs are float32, as `edge.manifest.CoreSpec` names them."""

    @property
    def describe(self) -> str:
        """For people: what runs it, its version and precision."""
        ...

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say once where each input and output lies on the device.

        Raises:
            BundleMismatchError: the engine's inputs and outputs are not these.
        """
        ...

    def enqueue(self, stream: Stream) -> None:
        """Queue one inference on `stream`, which may be recording a graph: it allocates nothing and never waits."""
        ...

    def close(self) -> None:
        """Free it."""
        ...
