"""The prompt bank: which normal images are kept as prompts, and which prompt an image gets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def k_centre(descriptors: F32, count: int) -> NDArray[np.int64]:
    """Choose `count` rows of `descriptors` (N, D), unit vectors, that cover the rest best (greedy k-centre).

    Starts from the row nearest the mean, then takes whichever row is farthest (in cosine) from those chosen:
    Gonzalez 1985, at most twice the optimal radius.  Returns row indices in order of choice; deterministic.
    """
    total = len(descriptors)
    first = int(np.argmax(descriptors @ descriptors.mean(axis=0)))
    chosen = [first]
    nearest = descriptors @ descriptors[first]
    for _ in range(min(count, total) - 1):
        farthest = int(np.argmin(nearest))
        chosen.append(farthest)
        nearest = np.maximum(nearest, descriptors @ descriptors[farthest])
    return np.asarray(chosen, np.int64)


def assign_prompts(descriptors: F32, bank: NDArray[np.int64], choices: int = 1) -> NDArray[np.int64]:
    """For each row, the `choices` most similar bank entries other than itself, best first.

    Returns indices into `bank`, shape `(N, choices)`.  An image must not be its own prompt in training, or recovery
    would be copying.  With a bank of one image, that image alone has no other and gets itself.
    """
    similarity = descriptors @ descriptors[bank].T
    similarity[bank, np.arange(len(bank))] = -np.inf
    choices = min(choices, max(1, len(bank) - 1))
    order = np.argsort(-similarity, axis=1, kind="stable")
    return order[:, :choices].astype(np.int64)
