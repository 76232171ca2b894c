"""Evidence of marked images: what it finds of features whose defects are known, and what it leaves alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from train.redi.discriminate import Features
from train.redi.evidence import STRENGTHS, MarkEvidence
from train.redi.level import SHARPNESS
from train.redi.memory import joined, middle
from train.redi.places import FALSE, HIDDEN
from train.redi.statistics import FeatureStatistics, ScaleStatistics

SCALES = ((4, 32, 24), (6, 16, 12), (8, 8, 6))
PLACES = 16 * 12
CHANNELS = 18


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ground(seed: int, images: int) -> torch.Tensor:
    """Good places, `(images, PLACES, C)`; one in twenty has a spot, far off along the first channel."""
    chance = generator(seed)
    vectors = torch.randn(images, PLACES, CHANNELS, generator=chance)
    spots = torch.rand(images, PLACES, generator=chance) < 0.05
    vectors[..., 0] += 8 * spots
    return vectors


def with_defects(seed: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of marked images, the last three of each a defect: a spot's first channel, and a second one of its own."""
    vectors = ground(seed, images)
    where = torch.zeros(images, PLACES, dtype=torch.bool)
    where[:, -3:] = True
    vectors[where] = torch.randn(int(where.sum()), CHANNELS, generator=generator(seed + 1))
    vectors[..., 0] += 8 * where
    vectors[..., 1] += 6 * where
    return vectors, where


@functools.cache
def taught(seed: int = 0) -> MarkEvidence:
    evidence = MarkEvidence(SCALES)
    marked, _ = with_defects(2, 12)
    assert evidence.fit(judged(ground(1, 40)), judged(marked), seed) > 0
    return evidence.eval()


def judged(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a density makes of places: spots are as unusual as defects."""
    return vectors, vectors.norm(dim=2) / 20


def found(evidence: MarkEvidence, vectors: torch.Tensor) -> torch.Tensor:
    """The evidence at places that are given as joined vectors, `(images, PLACES)`."""
    maps = vectors.transpose(1, 2).unflatten(2, (16, 12))
    with torch.no_grad():
        return torch.relu(evidence.verdict(torch.relu(evidence.hidden(maps)))).flatten(1)


def features(seed: int, images: int = 2) -> Features:
    one, two, three = (torch.rand(images, *scale, generator=generator(seed + scale[0])) for scale in SCALES)
    return one, two, three


def test_untaught_it_finds_nothing_and_changes_nothing() -> None:
    evidence = MarkEvidence(SCALES)
    with torch.no_grad():
        assert [float(e.abs().max()) for e in evidence(joined(features(0), middle(SCALES)))] == [0, 0, 0]
        pair = features(1), features(2)
        without, beside = (FeatureStatistics(SCALES, 1.0, True, marked)(*pair) for marked in (False, True))
    for one, other in zip(without, beside, strict=True):
        torch.testing.assert_close(one, other)


def test_it_tells_new_defects_from_the_spots_of_good_parts() -> None:
    evidence = taught()
    marked, where = with_defects(5, 20)
    answer = found(evidence, marked)
    assert (answer[where] > 0).float().mean() > 0.9
    assert (answer[~where] > 0).float().mean() < 5 * FALSE
    assert (found(evidence, ground(7, 40)) > 0).float().mean() < 5 * FALSE


def test_the_limit_is_what_good_images_reach_that_were_not_learnt_from() -> None:
    share = [float((found(taught(), ground(seed, 400)) > 0).double().mean()) for seed in (11, 12)]
    assert all(FALSE / 10 < each < 5 * FALSE for each in share)


def test_marks_that_spoil_the_ranking_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector tells these images apart by what is not in their features; what else is on them is chance."""
    monkeypatch.setattr("train.redi.places.FALSE", 0.2)
    marked = ground(20, 12)
    seen = marked.norm(dim=2) / 20
    seen[:, 5:7] = seen.max() + 0.05
    evidence = MarkEvidence(SCALES)
    assert evidence.fit(judged(ground(1, 40)), (marked, seen), 0) == 0
    assert float(found(evidence, marked).max()) == 0


def test_marks_of_what_the_detector_sees_already_count_in_full() -> None:
    """Where images are told apart without them, marks can only be as good, and they say where on the image it is."""
    marked, where = with_defects(2, 8)
    seen = judged(marked)[1] + where
    assert MarkEvidence(SCALES).fit(judged(ground(1, 40)), (marked, seen), 0) == STRENGTHS[0]


@pytest.mark.parametrize(("good", "marked"), [(1, 8), (40, 1), (1, 1)])
def test_a_single_image_leaves_none_to_judge_by(good: int, marked: int) -> None:
    evidence = MarkEvidence(SCALES)
    assert evidence.fit(judged(ground(1, good)), judged(with_defects(2, marked)[0]), 0) == 1
    assert float((found(evidence, ground(1, good)) > 0).double().mean()) <= FALSE + 1 / (good * PLACES)


def test_the_same_seed_teaches_the_same_and_leaves_torch_alone() -> None:
    one, same, other = (taught.__wrapped__(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["hidden.weight"], other["hidden.weight"])
    evidence, rows = MarkEvidence(SCALES), ground(1, 2)
    state = torch.get_rng_state()
    evidence.fit(judged(rows[:1]), judged(rows[1:]), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_that_never_vary_are_no_trouble() -> None:
    evidence = MarkEvidence(SCALES)
    flat = torch.full((3, PLACES, CHANNELS), 0.2)
    evidence.fit(judged(flat), judged(flat[:2]), 0)
    assert all(value.isfinite().all() for value in evidence.state_dict().values())
    assert float(found(evidence, flat).max()) == 0


def test_there_is_an_answer_at_every_scale() -> None:
    assert [tuple(e.shape) for e in MarkEvidence(SCALES)(joined(features(4), middle(SCALES)))] == [
        (2, 1, height, width) for _, height, width in SCALES
    ]


@pytest.mark.parametrize("density_weight", [0.0, 1.0])
def test_its_square_adds_to_the_other_cues(density_weight: float) -> None:
    x = torch.rand(3, *SCALES[0], generator=generator(8)) + 0.1
    y = x + 0.3 * torch.rand(x.shape, generator=generator(9))
    evidence = 3 * torch.rand(3, 1, *SCALES[0][1:], generator=generator(10))
    statistics = ScaleStatistics(4, SCALES[0][1:], density_weight, False, level=False)
    statistics.fit([(x, y)])

    def cosine(with_evidence: torch.Tensor | None = None) -> np.ndarray:
        with torch.no_grad():
            square = None if with_evidence is None else with_evidence.square()
            return 1 - statistics(x, y, evidence=square)[:, 0].double().numpy()

    # `1 + …` of what there is already, then as much more as the worst of good parts for an evidence of one.
    usual = 1 / cosine() ** 2
    wanted = 1 / np.sqrt(usual + SHARPNESS * evidence[:, 0].double().numpy() ** 2)
    np.testing.assert_allclose(cosine(evidence), wanted, rtol=1e-5)


def test_it_is_small_beside_the_network() -> None:
    count = sum(parameter.numel() for parameter in MarkEvidence(SCALES).parameters())
    assert count == CHANNELS * HIDDEN + HIDDEN + HIDDEN + 1


def test_a_mark_of_a_tiled_image_is_in_one_of_its_tiles() -> None:
    """Two tiles an image: a defect in one of them does not make the other one defective."""
    good = ground(1, 40).view(20, 2 * PLACES, CHANNELS)
    first, _ = with_defects(2, 24)
    marked = torch.cat([first, ground(3, 24)], 1)
    evidence = MarkEvidence(SCALES)
    evidence.fit(judged(good), judged(marked), 0)
    defects, where = with_defects(5, 20)
    assert (found(evidence, defects)[where] > 0).float().mean() > 0.8
    assert (found(evidence, ground(9, 20)) > 0).float().mean() < 5 * FALSE
