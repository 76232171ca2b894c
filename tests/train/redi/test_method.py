from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from train.redi.method import AFTER_SECONDS, AFTER_SHARE, COPIES_SHARE, _affordable, _training_share


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("left", [0.0, 100.0, 1e5])
def test_copies_take_no_more_than_their_share_of_the_time(blocks: int, seconds: float, left: float) -> None:
    taken = _affordable(blocks, seconds, left)
    assert 1 <= taken <= blocks
    assert (taken - 1) * seconds <= COPIES_SHARE * left
    assert taken == blocks or taken * max(seconds, 1e-6) > COPIES_SHARE * left


@dataclass
class Timed:
    """As much of a trainer as says how much time is left."""

    seconds: float

    @property
    def budget(self) -> Timed:
        return self

    def left(self) -> float:
        return self.seconds


@pytest.mark.parametrize("left", [-5.0, 0.0, 10.0, 400.0, 1e4, math.inf])
def test_time_is_kept_for_what_comes_after_training(left: float) -> None:
    kept = 1 - _training_share(Timed(left))  # type: ignore[arg-type]
    assert 0 <= kept <= AFTER_SHARE
    assert math.isinf(left) or kept * left == pytest.approx(min(AFTER_SECONDS, AFTER_SHARE * left)) or left <= 1
