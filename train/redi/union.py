"""ReDi with coarse marks: CKAAD's patch discriminators judge what the Feature Recovery Block gives back.

After training, `train.redi.evidence` learns from the same images what to look for besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.cli import console, progress
from train.ckaad.discriminators import PatchDiscriminator
from train.ckaad.losses import ENERGY_WEIGHT, discriminator_loss, energy_of
from train.ckaad.phase import DISCRIMINATOR_RATE, GOOD_PER_ANOMALY, still
from train.distributed import share
from train.featurecache import FeatureCache
from train.prepared import PreparedImages
from train.redi.bank import assign_prompts
from train.redi.discriminate import Features
from train.redi.memory import joined, resized, vectors
from train.redi.model import ReDi
from train.redi.phases import DiscriminatePhase, batches, halves, spaced
from train.redi.places import GOOD_PLACES
from train.redi.recover import PromptFeatures
from train.trainer import Update


class UnionPhase(DiscriminatePhase):
    """Stage 2 with images that show a defect somewhere.

    One patch discriminator per scale learns low energy for `F_X` of good images, high energy for `F_X` of coarse
    anomalies and for every `F_Y`; the FRB learns `L_Dis` on good images, and low energy of its `F_Y` on both.

    Args:
        model: the detector, its recover network trained.
        images: good ones.
        encoded: the prompt bank.
        prompts: which of its entries each image gets, best first.
        correlation_weight: of `L_S`.
        coarse: images that show a defect somewhere.
        nearest: the entry of the bank that prompts each of them.
        weight: `lambda`.
    """

    name = "discriminate-coarse"

    def __init__(
        self,
        model: ReDi,
        images: PreparedImages,
        encoded: PromptFeatures,
        prompts: NDArray[np.int64],
        correlation_weight: float,
        coarse: PreparedImages,
        nearest: NDArray[np.int64],
        weight: float = ENERGY_WEIGHT,
    ) -> None:
        super().__init__(model, images, encoded, prompts, correlation_weight)
        patches = nn.ModuleList(PatchDiscriminator(channels) for channels in model.phi.channels)
        self.patches = patches.to(images.device)
        self.module = nn.ModuleDict({"frb": model.frb, "patches": self.patches})
        self.coarse_count, self._energy_weight = len(coarse), weight
        self.coarse_tiles = coarse.tiles
        self.coarse = FeatureCache(
            lambda rows: self._pair(coarse.images(rows), coarse.maps(rows), nearest[rows]), len(coarse), images.device
        )
        self._step: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], tuple[int, int]]

    def updates(self, peak: float) -> list[Update]:
        """Discriminators first, then the FRB."""
        return [Update(self.patches, self._patch_loss, DISCRIMINATOR_RATE), Update(self._model.frb, self.loss, peak)]

    def _patch_loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return `L_D`, and keep the step's features for `loss`."""
        # Anomalies are few: every process takes all of them, and `counts` says so.
        marked = max(1, len(indices) // GOOD_PER_ANOMALY)
        anomalies, recovered = halves(self.coarse.get(rng.integers(0, self.coarse_count, marked)))
        good, good_recovered = self.pair(*share(indices))
        normal, normalised = self._model.frb(good_recovered), self._model.frb(recovered)
        counts = len(indices), marked
        self._step = good, normal, normalised, counts
        return discriminator_loss(
            self._judge(good),
            self._judge(anomalies),
            self._judge([f.detach() for f in normal]),
            self._judge([f.detach() for f in normalised]),
            counts,
        )

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return the FRB's loss of the step that the discriminators have just taken."""
        good, normal, normalised, counts = self._step
        with still(self.patches):
            energy = energy_of(self._judge(normal), self._judge(normalised), counts)
        return self._alignment(good, normal) + self._energy_weight * energy

    def _judge(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [judge(f) for judge, f in zip(self.patches, features, strict=True)]


@torch.no_grad()
def take_evidence(model: ReDi, phase: UnionPhase, originals: int, seed: int) -> None:
    """Teach the model what marked images have; the first `originals` rows of the good ones are no copies."""
    evidence = model.statistics.marks
    assert evidence is not None
    grid, tiles = model.statistics.grid, phase.coarse_tiles
    places = grid[0] * grid[1]
    whole = spaced(originals // tiles, max(1, GOOD_PLACES // (places * tiles)))
    normal = batches((whole[:, None] * tiles + np.arange(tiles)).flatten())
    anomalies = batches(np.arange(phase.coarse_count))

    def look(pair: tuple[Features, Features]) -> tuple[Tensor, Tensor]:
        reference, recovered = pair[0], model.frb(pair[1])
        distance = torch.cat([resized(d, grid) for d in model.statistics.distances(reference, recovered)], 1).mean(1)
        return vectors(joined(reference, grid)).half(), distance.flatten(1).cpu()

    def by_image(looked: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        features, distance = (torch.cat(parts) for parts in zip(*looked, strict=True))
        return features.reshape(-1, tiles * places, features.shape[2]), distance.reshape(-1, tiles * places)

    with progress(transient=True) as bar:
        good = [look(phase.pair(rows)) for rows in bar.track(normal, description="looking at good parts")]
        marked = [look(halves(phase.coarse.get(rows))) for rows in bar.track(anomalies, description="looking at marks")]
        task = bar.add_task("learning from marked images", total=None, note="")
        device = evidence.hidden.weight.device
        strength = evidence.cpu().fit(by_image(good), by_image(marked), seed)
        evidence.to(device)
        bar.remove_task(task)
    if not strength:
        console.print("what the marked images teach does not help to tell them from good ones: it is left out")


def nearest_prompts(images: PreparedImages, bank: NDArray[np.int64], coarse: PreparedImages) -> NDArray[np.int64]:
    """Return the entry of the bank, rows of `images`, that is nearest to each row of `coarse`."""
    described = np.concatenate([images.descriptors[bank], coarse.descriptors])
    return assign_prompts(described, np.arange(len(bank)))[len(bank) :, 0]
