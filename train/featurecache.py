"""Features that do not change during training, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge.cli import progress

#: Memory that cached features may take; images beyond it are computed anew in every epoch.
FEATURE_CACHE_BYTES = 2_500_000_000


class FeatureCache:
    """A few tensors for every image, float16 in main memory, computed once within a memory budget.

    Args:
        compute: gives the tensors, batch first, for some rows, on any device.
        count: of images.
        device: where batches are wanted.
    """

    def __init__(
        self, compute: Callable[[NDArray[np.int64]], Sequence[Tensor]], count: int, device: torch.device
    ) -> None:
        self._compute = compute
        self._count, self._device = count, device
        self._rows: dict[int, list[Tensor]] = {}
        self._used = 0

    def fill(self, batch: int, first: int = 0, end: int | None = None) -> None:
        """Compute as many images as the budget holds, of rows `first` to `end` - 1 (all), with a progress bar."""
        end = self._count if end is None else end
        if self._used > FEATURE_CACHE_BYTES or first >= end:
            return
        with progress(transient=True) as bar:
            task = bar.add_task("caching features", total=end - first, note="")
            for begin in range(first, end, batch):
                rows = np.arange(begin, min(begin + batch, end))
                features = self._compute(rows)
                for place, row in enumerate(rows):
                    kept = [f[place].half().cpu() for f in features]
                    self._used += sum(f.numel() * 2 for f in kept)
                    self._rows[int(row)] = kept
                bar.advance(task, len(rows))
                if self._used > FEATURE_CACHE_BYTES:
                    return

    def get(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """Return the tensors of these rows, float32, channels last."""
        if any(int(row) not in self._rows for row in rows):
            # Rounded as if they had been kept: what is learnt must not depend on where the memory ended.
            return [f.half().float() for f in self._compute(rows)]
        kept = [self._rows[int(row)] for row in rows]
        # Widened first: under bf16 autocast a CPU refuses to stack fp16.
        stacks = (torch.stack([f.float() for f in column]).to(self._device) for column in zip(*kept, strict=True))
        return [f.contiguous(memory_format=torch.channels_last) for f in stacks]
