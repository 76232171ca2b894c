from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from train import featurecache
from train.featurecache import FeatureCache


class Counted:
    """Computes a row's number and its square, and remembers which rows it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, rows: NDArray[np.int64]) -> list[torch.Tensor]:
        self.asked += rows.tolist()
        values = torch.from_numpy(rows).float().view(-1, 1, 1, 1)
        return [values, values.square()]


def test_parts_are_computed_once_each_and_the_rest_when_asked_for() -> None:
    compute = Counted()
    cache = FeatureCache(compute, 10, torch.device("cpu"))
    cache.fill(4, 0, 3)
    assert compute.asked == [0, 1, 2]
    cache.fill(4, 3, 8)
    assert compute.asked == list(range(8))
    numbers, squares = cache.get(np.array([7, 0, 3]))
    assert numbers.flatten().tolist() == [7, 0, 3]
    assert squares.flatten().tolist() == [49, 0, 9]
    assert compute.asked == list(range(8))
    assert cache.get(np.array([9, 1]))[0].flatten().tolist() == [9, 1]
    assert compute.asked == [*range(8), 9, 1]


def test_a_range_that_is_empty_asks_for_nothing() -> None:
    compute = Counted()
    FeatureCache(compute, 10, torch.device("cpu")).fill(4, 5, 5)
    assert not compute.asked


def test_the_budget_holds_for_all_parts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurecache, "FEATURE_CACHE_BYTES", 18)
    compute = Counted()
    cache = FeatureCache(compute, 10, torch.device("cpu"))
    cache.fill(2, 0, 4)
    # Four bytes a row: beyond the budget with the fifth, found out at the end of its batch.
    cache.fill(2, 4, 10)
    assert compute.asked == [0, 1, 2, 3, 4, 5]
    cache.fill(2, 6, 10)
    assert compute.asked == [0, 1, 2, 3, 4, 5]
