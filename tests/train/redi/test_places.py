from __future__ import annotations

import numpy as np
import torch

from train.redi.places import FALSE, HIDDEN, Whitening, limit_of, logits_of, taught


def rows(count: int, seed: int) -> torch.Tensor:
    """Vectors whose components hang together, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.tensor([[1.0, 0, 0, 0], [3, 2, 0, 0], [0, 0, 0.1, 0], [1, 0, 0, 0.5]])
    return torch.randn(count, 4, generator=generator) @ mix + torch.tensor([5.0, 0, 1, -2])


def test_whitened_vectors_are_uncorrelated_and_of_about_unit_variance() -> None:
    found = Whitening(rows(20_000, 0).half())(rows(20_000, 1))
    assert found.dtype == torch.float16
    covariance = np.cov(found.double().numpy().T)
    assert np.abs(covariance - np.diag(covariance.diagonal())).max() < 0.02
    # What hardly varies is not blown up beyond its share.
    assert (covariance.diagonal() < 1.05).all()
    assert np.median(covariance.diagonal()) > 0.7
    assert np.abs(found.double().mean(0).numpy()).max() < 0.02


def test_vectors_that_never_vary_give_finite_ones() -> None:
    flat = torch.full((50, 4), 0.3)
    assert Whitening(flat)(flat).isfinite().all()


def test_the_limit_is_what_all_but_a_few_reach_at_most() -> None:
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    beyond = (logits > limit_of(logits)).double().mean()
    assert 0.9 * FALSE < float(beyond) <= FALSE
    assert limit_of(torch.tensor([3.0])) == 3


def test_a_classifier_learns_what_tells_defects_from_every_kind_of_good_places() -> None:
    """Defects are far off along one axis; a second kind of good places is as far off along another."""
    torch.manual_seed(0)
    good, beside, defects = torch.randn(4000, 6), torch.randn(500, 6), torch.randn(500, 6)
    beside[:, 1] += 6
    defects[:, 0] += 6
    classifier = taught([good.half(), beside.half()], defects.half(), 500)
    with torch.no_grad():
        one, two, three = (logits_of(classifier, each).sort().values for each in (good, beside, defects))
    assert float(three[25]) > float(one[-4])
    assert float(three[25]) > float(two[-25])
    assert sum(p.numel() for p in classifier.parameters()) == 6 * HIDDEN + HIDDEN + HIDDEN + 1
