from __future__ import annotations

import pytest

from train.redi.method import COPIES_SHARE, _affordable


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("left", [0.0, 100.0, 1e5])
def test_copies_take_no_more_than_their_share_of_the_time(blocks: int, seconds: float, left: float) -> None:
    taken = _affordable(blocks, seconds, left)
    assert 1 <= taken <= blocks
    assert (taken - 1) * seconds <= COPIES_SHARE * left
    assert taken == blocks or taken * max(seconds, 1e-6) > COPIES_SHARE * left
