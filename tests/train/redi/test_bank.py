from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.redi.bank import assign_prompts, k_centre, random_prompts


def unit_rows(seed: int, count: int, size: int = 6) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 40))
def test_the_bank_is_distinct_and_as_large_as_asked(seed: int, count: int, wanted: int) -> None:
    bank = k_centre(unit_rows(seed, count), wanted)
    assert len(bank) == len(set(bank.tolist())) == min(count, wanted)


@given(st.integers(0, 1000), st.integers(3, 12), st.integers(1, 4))
def test_the_bank_covers_within_twice_the_best_radius(seed: int, count: int, wanted: int) -> None:
    from itertools import combinations

    rows = unit_rows(seed, count).astype(np.float64)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    wanted = min(wanted, count)
    bank = k_centre(rows.astype(np.float32), wanted)
    radius = distance[:, bank].min(1).max()
    best = min(distance[:, list(c)].min(1).max() for c in combinations(range(count), wanted))
    assert radius <= 2 * best + 1e-5


@given(st.integers(0, 1000), st.integers(2, 20), st.integers(1, 20), st.integers(1, 4))
def test_no_image_is_its_own_prompt_and_the_nearest_comes_first(seed: int, n: int, k: int, choices: int) -> None:
    rows = unit_rows(seed, n)
    bank = k_centre(rows, max(2, min(k, n)))
    prompts = assign_prompts(rows, bank, choices)
    assert prompts.shape == (n, min(choices, max(1, len(bank) - 1)))
    for row in range(n):
        chosen = bank[prompts[row]]
        assert row not in chosen
        others = [b for b in bank if b != row]
        assert np.isclose(rows[row] @ rows[chosen[0]], max(rows[row] @ rows[b] for b in others), atol=1e-6)


@given(
    seed=st.integers(0, 1000),
    images=st.integers(2, 6),
    tiles=st.integers(1, 4),
    k=st.integers(2, 20),
    choices=st.integers(1, 4),
)
def test_no_tile_is_prompted_by_a_tile_of_its_own_image(
    seed: int, images: int, tiles: int, k: int, choices: int
) -> None:
    rows, origins = unit_rows(seed, images * tiles), np.repeat(np.arange(images), tiles)
    bank = k_centre(rows, k)
    for prompts in (assign_prompts(rows, bank, choices, origins), random_prompts(len(rows), bank, seed, origins)):
        assert prompts.shape[0] == len(rows)
        assert prompts.shape[1] >= 1
        for row, chosen in enumerate(prompts):
            assert len(set(chosen.tolist())) == len(chosen)
            if (origins[bank] != origins[row]).any():
                assert origins[row] not in origins[bank[chosen]]
