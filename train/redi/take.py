"""What is taken of good parts once both stages are trained: statistics, memory, and what drawn defects teach."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from edge.cli import progress
from train.prepared import PreparedImages
from train.pseudo import PseudoAnomalies
from train.redi.drawn import CLASSIFIERS, Shown
from train.redi.memory import joined, vectors
from train.redi.model import ReDi
from train.redi.phases import DiscriminatePhase, batches, spaced
from train.redi.places import GOOD_PLACES

#: Rows that statistics are taken of; at 256² one has 256 places even at the coarsest scale.
STATISTICS_ROWS = 64

#: Rows whose places are remembered, and how many places in all are looked at for that.
MEMORY_ROWS, MEMORY_PLACES = 400, 60_000

#: Images that are drawn on, with one to so many defects each, and steps of learning from them.
DRAWN, DEFECTS, STEPS = 1200, 3, 3000

#: Share of a place that defects must cover to be learnt there, and how many places around are neither good nor defects.
COVERED, AROUND = 0.1, 2

#: Places that are kept of each of these images, of its defects, and of what is good about it, at most.
KEPT = 64


class _Kept:
    """Places of images as they are seen, of each all, or up to `most` at random."""

    def __init__(self, most: int | None = None, generator: torch.Generator | None = None) -> None:
        self._most, self._generator = most, generator
        self._places: list[Tensor] = []
        self._images: list[Tensor] = []

    def add(self, places: Tensor, image: int) -> None:
        """Keep some of one image's joined features `(P, C)`."""
        if self._most is not None:
            places = places[torch.randperm(len(places), generator=self._generator)[: self._most]]
        self._places.append(places.half())
        self._images.append(torch.full((len(places),), image))

    @property
    def shown(self) -> Shown:
        """All that was kept."""
        return Shown(torch.cat(self._places), torch.cat(self._images))


def take_statistics(model: ReDi, phase: DiscriminatePhase, images: PreparedImages, seed: int) -> None:
    """Fit the statistics to good images as they are, up to `STATISTICS_ROWS` of them, evenly spaced."""
    parts = batches(spaced(images.originals, STATISTICS_ROWS))
    pairs, unfamiliar = [], []
    with progress(transient=True) as bar, torch.no_grad():
        for part in bar.track(parts, description="taking statistics"):
            reference, recovered = phase.pair(part)
            pairs.append((reference, model.frb(recovered)))
        memory = model.statistics.memory
        if memory is not None:
            rows = spaced(images.originals, MEMORY_ROWS)
            kept = _Kept(math.ceil(MEMORY_PLACES / len(rows)), torch.Generator().manual_seed(seed))
            good = _good_places(phase, images, memory.grid, rows, kept, bar)
            task = bar.add_task("remembering good parts", total=None, note="")
            looked_at = [
                (reference, torch.from_numpy(images.origins[part]))
                for (reference, _), part in zip(pairs, parts, strict=True)
            ]
            unfamiliar = memory.fit(good.places, good.images, looked_at, seed)
            bar.remove_task(task)
        model.statistics.fit(pairs, unfamiliar)


def _good_places(
    phase: DiscriminatePhase,
    images: PreparedImages,
    grid: tuple[int, int],
    rows: NDArray[np.int64],
    kept: _Kept,
    bar: Progress,
) -> Shown:
    """Return what is kept of the places of good images, given their rows."""
    for part in bar.track(batches(rows), description="looking at good parts"):
        for row, found in zip(part, vectors(joined(phase.pair(part)[0], grid)), strict=True):
            kept.add(found, int(images.origins[row]))
    return kept.shown


@torch.no_grad()
def take_drawn(model: ReDi, phase: DiscriminatePhase, images: PreparedImages, effort: float, seed: int) -> None:
    """Teach the model what drawn defects have; `effort`, above 0 to 1, is how much of the usual work is done."""
    evidence = model.statistics.drawn
    assert evidence is not None
    grid = model.statistics.grid
    rows = spaced(images.originals, max(2, GOOD_PLACES // (grid[0] * grid[1])))
    with progress(transient=True) as bar:
        good = _good_places(phase, images, grid, rows, _Kept(), bar)
        defects, beside = _drawn(model, images, round(effort * DRAWN), seed, bar)
        steps, device = max(1, round(effort * STEPS)), evidence.hidden.weight.device
        task = bar.add_task("learning from drawn defects", total=CLASSIFIERS * steps, note="")
        evidence.cpu().fit(good, defects, beside, steps, seed, lambda: bar.advance(task))
        evidence.to(device)
        bar.remove_task(task)


def _drawn(model: ReDi, images: PreparedImages, count: int, seed: int, bar: Progress) -> tuple[Shown, Shown]:
    """Draw on about `count` images and return places of the defects, and good ones of the same images."""
    grid, originals = model.statistics.grid, images.originals
    drawer = PseudoAnomalies(images.x[:originals], model.input_spec)
    count = max(count, min(originals, 2))
    generator = torch.Generator().manual_seed(seed)
    defects, beside = _Kept(KEPT, generator), _Kept(KEPT, generator)
    for part in bar.track(batches(np.arange(count)), description="drawing defects"):
        rows = part * originals // count
        x, visible = images.x[torch.from_numpy(rows)].float().numpy(), np.zeros((len(part), *images.x.shape[2:]), bool)
        for image, changed, place in zip(x, visible, part, strict=True):
            rng = np.random.default_rng([seed, 6, int(place)])
            for _ in range(int(rng.integers(1, DEFECTS + 1))):
                changed |= drawer.draw(image, rng)
        features = model.phi(torch.from_numpy(x).to(images.device).contiguous(memory_format=torch.channels_last))
        covered = F.adaptive_avg_pool2d(torch.from_numpy(visible).float()[:, None], grid)
        near = F.max_pool2d(covered, 2 * AROUND + 1, 1, AROUND)
        places = vectors(joined(features, grid))
        for kept, chosen in ((defects, covered > COVERED), (beside, near == 0)):
            for row, found, wanted in zip(rows, places, chosen.flatten(1), strict=True):
                kept.add(found[wanted], int(images.origins[row]))
    return defects.shown, beside.shown
