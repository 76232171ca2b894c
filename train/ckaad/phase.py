"""CKAAD's training as phases for the trainer: the two-step update, and plain reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.ckaad.discriminators import Discriminators
from train.ckaad.elastic import elastic
from train.ckaad.losses import ENERGY_WEIGHT, discriminator_loss, energy_of, reconstruction_loss
from train.ckaad.model import Ckaad
from train.distributed import share
from train.featurecache import FeatureCache
from train.prepared import PreparedImages
from train.trainer import Phase, Update

#: The discriminators' learning rate.
DISCRIMINATOR_RATE = 1e-4

#: One anomaly is drawn for this many good images of a batch, at least one.
GOOD_PER_ANOMALY = 4


class ReconstructPhase(Phase):
    """Recon: the auto-encoder learns to give back the features of good images, and nothing else."""

    name = "reconstruct"

    def __init__(self, model: Ckaad, images: PreparedImages) -> None:
        self.module: nn.Module = model.autoencoder
        self._model, self._images = model, images
        self.cache = FeatureCache(lambda rows: self._extract(images.images(rows)), len(images), images.device)

    @torch.no_grad()
    def _extract(self, x: Tensor) -> Sequence[Tensor]:
        return self._model.extract(x)

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return the reconstruction loss of these rows."""
        (indices,) = share(indices)
        features = self.cache.get(indices)
        return reconstruction_loss(features, self._model.autoencoder(features))


class AdversarialPhase(ReconstructPhase):
    """CKAAD: discriminators learn the energies of good features, anomalies and reconstructions, then the auto-encoder
    learns reconstructions of low energy.

    Args:
        model: the detector.
        images: good ones.
        coarse: images that show a defect somewhere; None: good images are bent elastically instead.
        weight: `lambda`.
    """

    name = "adversarial"

    def __init__(
        self, model: Ckaad, images: PreparedImages, coarse: PreparedImages | None, weight: float = ENERGY_WEIGHT
    ) -> None:
        super().__init__(model, images)
        size = model.input_spec
        self.discriminators = Discriminators(model.scales, (size.height, size.width)).to(
            images.device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        self.module = nn.ModuleDict({"autoencoder": model.autoencoder, "discriminators": self.discriminators})
        self._weight = weight
        self.coarse: FeatureCache | None = None
        if coarse is not None:
            self._coarse_count = len(coarse)
            self.coarse = FeatureCache(lambda rows: self._extract(coarse.images(rows)), len(coarse), images.device)
        self._step: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], tuple[int, int]]

    def updates(self, peak: float) -> list[Update]:
        """Discriminators first, then the auto-encoder."""
        return [
            Update(self.discriminators, self._discriminator_loss, DISCRIMINATOR_RATE),
            Update(self._model.autoencoder, self.loss, peak),
        ]

    def _discriminator_loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return `L_D`, and keep the step's features and reconstructions for `loss`."""
        # Anomalies are few: every process takes all of them, and `counts` says so.
        anomalies = self._anomalies(max(1, len(indices) // GOOD_PER_ANOMALY), rng)
        counts = len(indices), len(anomalies[0])
        good = self.cache.get(*share(indices))
        rebuilt = self._model.autoencoder(good), self._model.autoencoder(anomalies)
        self._step = good, anomalies, *rebuilt, counts
        judge = self.discriminators
        return discriminator_loss(
            judge(good),
            judge(anomalies),
            judge([f.detach() for f in rebuilt[0]]),
            judge([f.detach() for f in rebuilt[1]]),
            counts,
        )

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return `L_AE` of the step that the discriminators have just taken."""
        good, _, rebuilt, anomalies_rebuilt, counts = self._step
        with still(self.discriminators):
            energy = energy_of(self.discriminators(rebuilt), self.discriminators(anomalies_rebuilt), counts)
        return reconstruction_loss(good, rebuilt) + self._weight * energy

    def _anomalies(self, count: int, rng: np.random.Generator) -> Sequence[Tensor]:
        if self.coarse is not None:
            return self.coarse.get(rng.integers(0, self._coarse_count, count))
        rows = self._images.x[torch.from_numpy(rng.integers(0, len(self._images), count))]
        bent = np.stack([elastic(row.float().numpy(), rng) for row in rows])
        x = torch.from_numpy(bent).to(self._images.device).contiguous(memory_format=torch.channels_last)
        return self._extract(x)


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through `module` without reaching its own parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
