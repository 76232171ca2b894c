"""The memory of typical features, against the definition in NumPy and float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from train.redi.discriminate import Features
from train.redi.level import SMALL, ImageLevel
from train.redi.memory import FeatureMemory, joined, resized, typical, vectors

F64 = NDArray[np.float64]
SCALES = ((4, 16, 24), (6, 8, 12), (8, 4, 6))
GRID, PLACES, CHANNELS = (8, 12), 96, 18


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(seed: int, images: int = 4) -> Features:
    one, two, three = (torch.rand(images, *scale, generator=generator(seed + scale[0])) for scale in SCALES)
    return one, two, three


def filled(entries: int = 30, level: bool = False, seed: int = 0) -> tuple[FeatureMemory, list[torch.Tensor]]:
    """A memory of eight images, and what it said of them."""
    memory = FeatureMemory(SCALES, entries, level)
    batches = [features(0), features(50)]
    places = torch.cat([vectors(joined(batch, GRID)) for batch in batches]).flatten(0, 1)
    owners = torch.arange(8).repeat_interleave(PLACES)
    looked_at = [(batch, torch.arange(4) + 4 * place) for place, batch in enumerate(batches)]
    return memory, memory.fit(places, owners, looked_at, seed)


def entries_of(memory: FeatureMemory) -> F64:
    assert memory.nearest.bias is not None
    entries = memory.nearest.weight[:, :, 0, 0].detach().double().numpy() / 2
    np.testing.assert_allclose(memory.nearest.bias.detach().numpy(), -(entries**2).sum(1), rtol=1e-5)
    return entries


def squared_distances(rows: F64, entries: F64) -> F64:
    found: F64 = ((rows[:, None] - entries[None]) ** 2).sum(2).min(1)
    return found


def answer(memory: FeatureMemory, reference: Features) -> F64:
    with torch.no_grad():
        found: F64 = memory(joined(reference, memory.grid))[:, 0].double().numpy()
    return found


def test_joined_are_unit_vectors_of_every_scale_at_the_middle_one_s_places() -> None:
    fine, middle, coarse = features(4)
    found = joined((fine, middle, coarse), GRID)
    assert found.shape == (4, CHANNELS, *GRID)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(found[:, :4], unit(torch.nn.functional.avg_pool2d(fine, 2), dim=1))
    torch.testing.assert_close(found[:, 4:10], unit(middle, dim=1))
    torch.testing.assert_close(found[:, 10:], unit(resized(coarse, GRID), dim=1))


def test_empty_it_finds_nothing_unfamiliar() -> None:
    assert answer(FeatureMemory(SCALES, 7, True), features(1)).max() == 0


def test_it_says_how_far_the_nearest_entry_is() -> None:
    memory, _ = filled()
    reference = features(9)
    rows = vectors(joined(reference, GRID)).double().numpy().reshape(-1, CHANNELS)
    wanted = squared_distances(rows, entries_of(memory)).reshape(4, *GRID)
    np.testing.assert_allclose(answer(memory, reference), wanted, rtol=1e-4, atol=1e-5)


def test_the_typical_are_k_centres_moved_to_the_mean_of_what_is_nearest() -> None:
    rows = torch.randn(400, 5, generator=generator(2))
    # Where the projection is none, the greedy choice can be followed.
    found = typical(rows, 12, torch.eye(5)).double().numpy()
    places = rows.double().numpy()
    chosen = [0]
    for _ in range(11):
        chosen.append(int(squared_distances(places, places[chosen]).argmax()))
    own = ((places[:, None] - places[chosen][None]) ** 2).sum(2).argmin(1)
    np.testing.assert_allclose(found, [places[own == centre].mean(0) for centre in range(12)], atol=1e-5)


def test_the_rare_features_of_good_parts_have_an_entry_each() -> None:
    rows = 0.01 * torch.randn(500, 4, generator=generator(3))
    rows[7, 2], rows[400, 3] = 5.0, -5.0
    found = typical(rows, 6, torch.eye(4)).double().numpy()
    assert squared_distances(rows[[7, 400]].double().numpy(), found).max() < 1e-6


def test_of_good_images_it_says_what_a_memory_of_others_would() -> None:
    """Each image is judged by the other half; within what it was made of, everything would be familiar."""
    memory, said = filled(entries=8 * PLACES)
    for place, batch in enumerate((features(0), features(50))):
        assert answer(memory, batch).max() < 1e-5
        others = [image for image in range(8) if image % 2]
        rows = vectors(joined(batch, GRID)).double().numpy()
        pool = torch.cat([vectors(joined(one, GRID)) for one in (features(0), features(50))]).double().numpy()
        for image in (0, 2):
            wanted = squared_distances(rows[image], pool[others].reshape(-1, CHANNELS))
            np.testing.assert_allclose(said[place][image, 0].numpy().ravel(), wanted, rtol=1e-3, atol=1e-5)


def test_distances_are_relative_to_the_image_s_level() -> None:
    memory, said = filled(level=True)
    plainly, plainly_said = filled()
    assert memory.level is not None
    level = ImageLevel()
    level.fit(plainly_said)
    for found, plain in zip(said, plainly_said, strict=True):
        torch.testing.assert_close(found, plain * level(plain).square())
    memory.level.share.fill_(1.0)
    memory.level.limits.copy_(torch.tensor([-9.0, 9.0]))
    distance = answer(plainly, features(9))
    levels = np.log(distance + SMALL).mean((1, 2), keepdims=True)
    wanted = distance * np.exp(float(memory.level.usual) - levels)
    np.testing.assert_allclose(answer(memory, features(9)), wanted, rtol=1e-3)


def test_one_image_alone_leaves_it_empty() -> None:
    memory = FeatureMemory(SCALES, 7, True)
    batch = features(0, 1)
    owners = torch.zeros(PLACES, dtype=torch.long)
    said = memory.fit(vectors(joined(batch, GRID))[0], owners, [(batch, torch.zeros(1, dtype=torch.long))], 0)
    assert [tuple(each.shape) for each in said] == [(1, 1, *GRID)]
    assert float(said[0].abs().max()) == answer(memory, features(3)).max() == 0


def test_fewer_places_than_entries_are_all_kept() -> None:
    memory, _ = filled(entries=10_000)
    assert len(np.unique(entries_of(memory).round(5), axis=0)) == 8 * PLACES


def test_the_same_seed_remembers_the_same_and_leaves_torch_alone() -> None:
    (one, _), (same, _), (other, _) = filled(), filled(), filled(seed=1)
    state = torch.get_rng_state()
    batch = features(0, 2)
    places, owners = vectors(joined(batch, GRID)).flatten(0, 1), torch.arange(2).repeat_interleave(PLACES)
    one.fit(places, owners, [(batch, torch.arange(2))], 0)
    assert torch.equal(torch.get_rng_state(), state)
    one, _ = filled()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.nearest.weight, other.nearest.weight)


@pytest.mark.parametrize("size", [0.02, 1.0, 60.0])
def test_neither_the_size_of_features_nor_half_precision_matters(size: float) -> None:
    memory, _ = filled(level=True)
    exact = answer(memory, features(9))
    scaled = [size * f for f in features(9)]
    one, two, three = scaled
    np.testing.assert_allclose(answer(memory, (one, two, three)), exact, rtol=1e-3, atol=1e-5)
    found = answer(copy.deepcopy(memory).half(), (one.half(), two.half(), three.half()))
    np.testing.assert_allclose(found, exact, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("nothing", [0.0, 1.0])
def test_features_without_any_variety_are_no_trouble(nothing: float) -> None:
    memory = FeatureMemory(SCALES, 5, True)
    one, two, three = (torch.full((2, *scale), nothing) for scale in SCALES)
    places = vectors(joined((one, two, three), GRID)).flatten(0, 1)
    said = memory.fit(places, torch.arange(2).repeat_interleave(PLACES), [((one, two, three), torch.arange(2))], 0)
    assert float(said[0].abs().max()) < 1e-5
    assert np.isfinite(answer(memory, features(3))).all()
