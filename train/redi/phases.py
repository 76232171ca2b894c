"""The two stages of ReDi as phases for the trainer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.prepared import PreparedImages
from train.redi.discriminate import Features
from train.redi.losses import alignment_loss, correlation_loss, recovery_loss
from train.redi.model import ReDi
from train.redi.recover import PromptFeatures

#: Memory that cached features may take; images beyond it are computed anew in every epoch.
FEATURE_CACHE_BYTES = 2_500_000_000


class RecoverPhase:
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
        others = self._bank[self._prompts[indices, choice]]
        prompt = self._recover.prompt(self._images.images(others), self._images.maps(others))
        recovered = self._recover(self._images.maps(indices), prompt)
        target = self._images.images(indices)
        return recovery_loss(recovered.float() * self._std + self._mean, target * self._std + self._mean)


class FeatureCache:
    """`F_X` and `R_Y` of every image, float16 in main memory, computed once within a memory budget.

    Args:
        compute: gives both for some rows, on any device.
        count: of images.
        device: where batches are wanted.
    """

    def __init__(
        self, compute: Callable[[NDArray[np.int64]], tuple[Features, Features]], count: int, device: torch.device
    ) -> None:
        self._compute = compute
        self._count, self._device = count, device
        self._rows: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def fill(self, batch: int, advance: Callable[[int], None]) -> None:
        """Compute as many images as the budget holds, calling `advance(images)` after each batch."""
        used = 0
        for begin in range(0, self._count, batch):
            rows = np.arange(begin, min(begin + batch, self._count))
            reference, recovered = self._compute(rows)
            for place, row in enumerate(rows):
                pair = ([f[place].half().cpu() for f in reference], [f[place].half().cpu() for f in recovered])
                used += sum(t.numel() * 2 for side in pair for t in side)
                self._rows[int(row)] = pair
            advance(len(rows))
            if used > FEATURE_CACHE_BYTES:
                return

    def get(self, rows: NDArray[np.int64]) -> tuple[list[Tensor], list[Tensor]]:
        """Return `F_X` and `R_Y` of these rows, float32, channels last."""
        if any(int(row) not in self._rows for row in rows):
            reference, recovered = self._compute(rows)
            return list(reference), list(recovered)
        pairs = [self._rows[int(row)] for row in rows]
        sides = []
        for side in (0, 1):
            # Widened first: under bf16 autocast a CPU refuses to stack fp16.
            scales = [
                torch.stack([pair[side][scale].float() for pair in pairs]).to(self._device)
                for scale in range(len(pairs[0][side]))
            ]
            sides.append([f.contiguous(memory_format=torch.channels_last) for f in scales])
        return sides[0], sides[1]


class DiscriminatePhase:
    """Stage 2: `L_Dis = L_D + lambda_S L_S` of the FRB's features of `Y` against the features of `X`."""

    name = "discriminate"

    def __init__(
        self,
        model: ReDi,
        images: PreparedImages,
        bank: NDArray[np.int64],
        prompts: NDArray[np.int64],
        correlation_weight: float,
    ) -> None:
        self.module: nn.Module = model.frb
        self._model, self._images, self._prompts = model, images, prompts
        self._weight = correlation_weight
        self._encoded = encode_bank(model, images, bank)
        self.cache = FeatureCache(self._features, len(images), images.device)

    @torch.no_grad()
    def _features(self, rows: NDArray[np.int64]) -> tuple[Features, Features]:
        nearest = torch.from_numpy(self._prompts[rows, 0]).to(self._images.device)
        prompt = PromptFeatures(self._encoded.key[nearest], self._encoded.value[nearest])
        reference: Features = self._model.phi(self._images.images(rows))
        return reference, self._model.recovered_features(self._images.maps(rows), prompt)

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return `L_Dis` of these rows."""
        reference, recovered = self.cache.get(indices)
        normal = self._model.frb(recovered)
        loss = alignment_loss(reference, normal)
        if self._weight > 0:
            loss = loss + self._weight * correlation_loss(reference, normal)
        return loss


@torch.no_grad()
def encode_bank(model: ReDi, images: PreparedImages, bank: NDArray[np.int64], batch: int = 8) -> PromptFeatures:
    """Encode the bank's images, `key` `(K, D, cells)` and `value` `(K, cells, V)`, float32."""
    model.eval()
    parts = [
        model.recover.prompt(images.images(rows), images.maps(rows))
        for rows in np.array_split(bank, max(1, len(bank) // batch))
    ]
    return PromptFeatures(torch.cat([p.key for p in parts]), torch.cat([p.value for p in parts]))
