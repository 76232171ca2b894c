"""The prompt bank: what the network remembers of good parts, and the choice of the entry nearest to a frame."""

from __future__ import annotations

import zlib
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
    choice: str = "nearest"

    @classmethod
    def load(cls, bundle: Bundle) -> PromptBank:
        """Return the bundle's bank, whose shapes opening has checked.

        What is stored as float32 stays memory-mapped; float16 entries are widened here, once.
        """
        core = bundle.manifest.model.core
        features = {
            name: np.require(bundle.array(f"prompts/{name}.npy"), np.float32, ["C", "A"])
            for name in core.prompt_features
        }
        return cls(bundle.array(DESCRIPTORS), features, core.prompt_choice)

    def __len__(self) -> int:
        return len(self.descriptors)

    def choose(self, descriptor: F32) -> int:
        """Return the index of the entry for an image with this descriptor; see `choose_prompt`."""
        return choose_prompt(descriptor, self.descriptors, self.choice)


def choose_prompt(descriptor: F32, descriptors: F32, choice: str = "nearest") -> int:
    """Return which of the `descriptors` `(K, D)` is the prompt of an image with this `descriptor` `(D,)`.

    `nearest`: the largest dot product of unit vectors.  `random`: any, but always the same for the same image.
    """
    if choice == "random":
        return zlib.crc32(descriptor.data) % len(descriptors)
    return nearest(descriptor, descriptors)[0]
