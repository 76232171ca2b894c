"""The prompt bank: what the network remembers of good parts, and the choice of the entry nearest to a frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge.bundle import DESCRIPTORS, Bundle
from edge.frames import F32
from edge.inspection.native import nearest


@dataclass(frozen=True)
class PromptBank:
    """`descriptors`, float32 `(K, D)`, unit length, and each prompt feature's entries, float32 `(K, *shape)`."""

    descriptors: F32
    features: Mapping[str, F32]

    @classmethod
    def load(cls, bundle: Bundle) -> PromptBank:
        """Return the bundle's bank, whose shapes opening has checked.

        What is stored as float32 stays memory-mapped; float16 entries are widened here, once.
        """
        names = bundle.manifest.model.core.prompt_features
        return cls(
            bundle.array(DESCRIPTORS),
            {name: np.require(bundle.array(f"prompts/{name}.npy"), np.float32, ["C", "A"]) for name in names},
        )

    def __len__(self) -> int:
        return len(self.descriptors)

    def choose(self, descriptor: F32) -> int:
        """Return the index of the entry whose descriptor is most similar: the largest dot product of unit vectors."""
        return nearest(descriptor, self.descriptors)[0]
