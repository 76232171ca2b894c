"""Evidence of drawn defects: what it finds of defects that are known, and that it never counts much."""

from __future__ import annotations

import functools

import torch

from train.redi.drawn import MOST, DrawnEvidence, Shown
from train.redi.memory import joined, middle
from train.redi.places import FALSE

SCALES = ((4, 32, 24), (6, 16, 12), (8, 8, 6))
CHANNELS = 18
STEPS = 300


def places(seed: int, count: int, images: int, off: tuple[int, float] | None = None) -> Shown:
    """Places of so many images in turn, maybe far off along one channel."""
    vectors = torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(seed))
    if off is not None:
        vectors[:, off[0]] += off[1]
    return Shown(vectors.half(), torch.arange(count) % images)


@functools.cache
def taught(seed: int = 0, images: int = 6) -> DrawnEvidence:
    evidence = DrawnEvidence(SCALES)
    evidence.fit(places(1, 6000, images), places(2, 800, images, (0, 6)), places(3, 800, images, (1, 3)), STEPS, seed)
    return evidence.eval()


def found(evidence: DrawnEvidence, vectors: torch.Tensor) -> torch.Tensor:
    """The squared evidence at the places of the middle scale that these vectors `(P, C)` are at."""
    maps = vectors.float()[: 16 * 12].T.reshape(1, CHANNELS, 16, 12)
    with torch.no_grad():
        return evidence(maps)[1].flatten()


def test_untaught_it_finds_nothing() -> None:
    e = joined([torch.rand(2, *scale) for scale in SCALES], middle(SCALES))
    answers = DrawnEvidence(SCALES)(e)
    assert [tuple(a.shape) for a in answers] == [(2, 1, h, w) for _, h, w in SCALES]
    assert max(float(a.abs().max()) for a in answers) == 0


def test_it_finds_defects_and_leaves_good_places_and_what_is_beside_defects_alone() -> None:
    assert float((found(taught(), places(12, 192, 1, (0, 6)).places) > 0).double().mean()) > 0.9
    assert float((found(taught(), places(13, 192, 1, (1, 3)).places) > 0).double().mean()) < 0.05
    good = torch.cat([found(taught(), places(seed, 192, 1).places) for seed in range(20, 120)])
    assert float((good > 0).double().mean()) < 5 * FALSE


def test_it_never_counts_more_than_so_much_however_far_off_a_place_is() -> None:
    answer = found(taught(), places(14, 192, 1, (0, 60)).places)
    assert float(answer.max()) <= MOST**2
    assert float(answer.min()) > 0.9 * MOST**2


def test_one_image_alone_or_none_that_shows_a_defect_leaves_it_untaught() -> None:
    assert float(taught(0, 1).verdict.weight.abs().max()) == 0
    evidence, nothing = DrawnEvidence(SCALES), places(2, 0, 1)
    evidence.fit(places(1, 600, 6), nothing, places(3, 80, 6), STEPS, 0)
    evidence.fit(places(1, 600, 6), places(2, 80, 6), nothing, STEPS, 0)
    assert float(evidence.verdict.weight.abs().max()) == 0


def test_defects_on_one_image_alone_are_judged_by_the_others() -> None:
    evidence = DrawnEvidence(SCALES)
    one = Shown(places(2, 400, 1, (0, 6)).places, torch.full((400,), 4))
    evidence.fit(places(1, 3000, 6), one, Shown(places(3, 400, 1).places, one.images), STEPS, 0)
    assert float((found(evidence, places(12, 192, 1, (0, 6)).places) > 0).double().mean()) > 0.9


def test_the_same_seed_teaches_the_same_and_leaves_torch_alone() -> None:
    one, same, other = (taught.__wrapped__(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["hidden.weight"], other["hidden.weight"])
    evidence, state = DrawnEvidence(SCALES), torch.get_rng_state()
    evidence.fit(places(1, 60, 6), places(2, 60, 6), places(3, 60, 6), 2, 0)
    assert torch.equal(torch.get_rng_state(), state)
