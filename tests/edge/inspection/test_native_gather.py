"""A prompt's features out of a table of addresses, against NumPy's own widening."""

from __future__ import annotations

import numpy as np
import pytest

from edge.inspection.library import GATHER_STRIP, isas, kernel_function


def gather(bank: np.ndarray, chosen: int, isa: str, size: int | None = None) -> np.ndarray:
    table = np.array([entry.ctypes.data for entry in bank], np.uint64)
    index = np.array([chosen], np.int32)
    size = bank.shape[1] if size is None else size
    to = np.full(bank.shape[1] + 2, 7.0, np.float32)
    kernel_function("redi_gather", isa)(index.ctypes.data, table.ctypes.data, size, to.ctypes.data)
    assert (to[size:] == 7).all()
    return to[:size]


@pytest.mark.parametrize("isa", isas())
def test_every_half_is_widened_exactly(isa: str) -> None:
    bank = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, -1)
    found = gather(bank, 0, isa)
    with np.errstate(invalid="ignore"):
        expected = bank[0].astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("size", [2, GATHER_STRIP - 2, GATHER_STRIP, GATHER_STRIP + 2, 3 * GATHER_STRIP + 128])
def test_the_chosen_entry_whole_and_no_more(size: int) -> None:
    bank = np.random.default_rng(size).standard_normal((5, size)).astype(np.float16)
    for isa in isas():
        for chosen in range(5):
            np.testing.assert_array_equal(gather(bank, chosen, isa), bank[chosen].astype(np.float32))
