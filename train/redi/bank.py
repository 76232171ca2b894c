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


def random_prompts(
    count: int, bank: NDArray[np.int64], seed: int, origins: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """For each of `count` rows, bank entries of other images in an order of their own, drawn from `seed`.

    `origins` `(count,)` says which image each row is from; by default each is one of its own.  Returns indices into
    `bank`, shape `(count, choices)`: as many as every row has, except those that have none and get their own image's.
    """
    origins = np.arange(count) if origins is None else origins
    rng = np.random.default_rng([seed, len(bank)])
    order = np.stack([rng.permutation(len(bank)) for _ in range(count)])
    own = origins[bank[order]] == origins[:, None]
    others_first = np.take_along_axis(order, np.argsort(own, axis=1, kind="stable"), axis=1)
    return others_first[:, : _choices(own)].astype(np.int64)


def assign_prompts(
    descriptors: F32, bank: NDArray[np.int64], choices: int = 1, origins: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """For each row, the `choices` most similar bank entries of other images, best first.

    `origins` `(N,)` says which image each row is from; by default each is one of its own.  Returns indices into
    `bank`, shape `(N, choices)`, fewer where some row has fewer others.  An image must not prompt its own tiles in
    training, or recovery would be copying.  A row that has no other gets its own image's.
    """
    origins = np.arange(len(descriptors)) if origins is None else origins
    own = origins[bank][None] == origins[:, None]
    similarity = np.where(own, -np.inf, descriptors @ descriptors[bank].T)
    order = np.argsort(-similarity, axis=1, kind="stable")
    return order[:, : min(choices, _choices(own))].astype(np.int64)


def _choices(own: NDArray[np.bool_]) -> int:
    """Return how many entries of other images every row has that has any, given `(N, K)` whether one is its own."""
    others = (~own).sum(axis=1)
    return int(others[others > 0].min(initial=own.shape[1])) if others.any() else 1
