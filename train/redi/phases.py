"""The two stages of ReDi as phases for the trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.distributed import share
from train.featurecache import FeatureCache
from train.prepared import PreparedImages
from train.redi.discriminate import Features
from train.redi.losses import alignment_loss, correlation_loss, recovery_loss
from train.redi.model import ReDi
from train.redi.recover import PromptFeatures
from train.trainer import Phase


class RecoverPhase(Phase):
    """Stage 1: `L_Rec` between the recovered image and the image, prompted by one of its nearest other images."""

    name = "recover"

    def __init__(
        self, model: ReDi, images: PreparedImages, bank: NDArray[np.int64], prompts: NDArray[np.int64]
    ) -> None:
        self.module: nn.Module = model.recover
        self._recover = model.recover
        self._images, self._bank, self._prompts = images, bank, prompts
        spec = model.input_spec
        self._mean = torch.tensor(spec.mean, device=images.device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=images.device).view(1, 3, 1, 1)

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return `L_Rec` of these rows."""
        choice = rng.integers(0, self._prompts.shape[1], len(indices))
        indices, choice = share(indices, choice)
        others = self._bank[self._prompts[indices, choice]]
        prompt = self._recover.prompt(self._images.images(others), self._images.maps(others))
        recovered = self._recover(self._images.maps(indices), prompt)
        target = self._images.images(indices)
        return recovery_loss(recovered.float() * self._std + self._mean, target * self._std + self._mean)


class DiscriminatePhase(Phase):
    """Stage 2: `L_Dis = L_D + lambda_S L_S` of the FRB's features of `Y` against the features of `X`."""

    name = "discriminate"

    def __init__(
        self,
        model: ReDi,
        images: PreparedImages,
        encoded: PromptFeatures,
        prompts: NDArray[np.int64],
        correlation_weight: float,
    ) -> None:
        self.module: nn.Module = model.frb
        self._model, self._images, self._prompts = model, images, prompts
        self._weight = correlation_weight
        self._encoded = encoded
        self.cache = FeatureCache(self._features, len(images), images.device)

    def _features(self, rows: NDArray[np.int64]) -> list[Tensor]:
        return self._pair(self._images.images(rows), self._images.maps(rows), self._prompts[rows, 0])

    @torch.no_grad()
    def _pair(self, x: Tensor, h: Tensor, chosen: NDArray[np.int64]) -> list[Tensor]:
        """Return `F_X`, then `R_Y`, of images whose prompts are these entries of the bank."""
        nearest = torch.from_numpy(chosen).to(x.device)
        prompt = PromptFeatures(self._encoded.key[nearest], self._encoded.value[nearest])
        reference: Features = self._model.phi(x)
        return [*reference, *self._model.recovered_features(h, prompt)]

    def pair(self, rows: NDArray[np.int64]) -> tuple[Features, Features]:
        """Return `F_X` and `R_Y` of these rows, from the cache where it has them."""
        return halves(self.cache.get(rows))

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return `L_Dis` of these rows."""
        (indices,) = share(indices)
        reference, recovered = self.pair(indices)
        return self._alignment(reference, self._model.frb(recovered))

    def _alignment(self, reference: Sequence[Tensor], normal: Sequence[Tensor]) -> Tensor:
        """Return `L_Dis` of `F_X` and `F_Y`."""
        loss = alignment_loss(reference, normal)
        if self._weight > 0:
            loss = loss + self._weight * correlation_loss(reference, normal)
        return loss


def halves(features: Sequence[Tensor]) -> tuple[Features, Features]:
    """Return the first three of six, and the others."""
    a, b, c, d, e, f = features
    return (a, b, c), (d, e, f)


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` of `count` rows, evenly spaced."""
    rows: NDArray[np.int64] = np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)
    return rows


def batches(rows: NDArray[np.int64], most: int = 8) -> list[NDArray[np.int64]]:
    """Return the rows in parts of about equal length, up to `most` in each."""
    return np.array_split(rows, math.ceil(len(rows) / most))


@torch.no_grad()
def encode_bank(model: ReDi, images: PreparedImages, bank: NDArray[np.int64], batch: int = 8) -> PromptFeatures:
    """Encode the bank's images, `key` `(K, D, cells)` and `value` `(K, cells, V)`, float32."""
    model.eval()
    parts = [
        model.recover.prompt(images.images(rows), images.maps(rows))
        for rows in np.array_split(bank, max(1, len(bank) // batch))
    ]
    return PromptFeatures(torch.cat([p.key for p in parts]), torch.cat([p.value for p in parts]))
