"""What good parts look like, place by place: typical features, and how far from all of them a place is.

Density takes good features for one cloud per scale.  A part with print, holes and edges has many small ones, and where
it lies in any rotation they are found at any place; what is missing or misplaced then lies between clouds that are all
usual.  So typical features of all scales together are kept, as PatchCore keeps them (Roth et al. 2022), and the squared
distance to the nearest tells how unfamiliar a place is.

They are a greedy k-centre subset of good places, which reaches what is rare on good parts, then each is exchanged for
the mean of the places that are nearest to it, which takes the noise out: one step of Lloyd's algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.redi.discriminate import Features
from train.redi.level import ImageLevel, levelled, related

#: Channels that the greedy choice compares: a random projection, which keeps distances well enough for it.
PROJECTED = 64

#: Keeps the length of a vector of nothing but zeros from dividing by zero.
SHORTEST = 1e-6

#: Places that are looked at together.
_CHUNK = 8192


class FeatureMemory(nn.Module):
    """Typical features of good places, at the places of the middle scale.  Empty, nothing is unfamiliar.

    Args:
        scales: `(channels, height, width)`, finest first.
        entries: how many typical features.
        level: relate distances to the image's own level of them (`train.redi.level`).
    """

    def __init__(self, scales: Sequence[tuple[int, int, int]], entries: int, level: bool) -> None:
        super().__init__()
        self.grid = middle(scales)
        channels = sum(channels for channels, _, _ in scales)
        # The largest of `2 e b - |b|^2` over the entries `b` is `|e|^2` less the squared distance to the nearest.
        self.nearest = nn.Conv2d(channels, entries, 1)
        nn.init.zeros_(self.nearest.weight)
        assert self.nearest.bias is not None
        nn.init.zeros_(self.nearest.bias)
        self.level = ImageLevel() if level else None
        self.filled: Tensor
        self.register_buffer("filled", torch.zeros(()))

    def forward(self, e: Tensor) -> Tensor:
        """Return how unfamiliar joined features `(N, C, h, w)` are, float32 `(N, 1, h, w)`, relative to the level."""
        return levelled(self._distance(e), self.level)

    def _distance(self, e: Tensor) -> Tensor:
        """Return the squared distance of joined features `(N, C, h, w)` to the nearest entry, `(N, 1, h, w)`."""
        closeness = self.nearest(e).amax(1, keepdim=True).float()
        # Rounding may leave less than zero; a limit would do, but some runtimes make a number of NaN there.
        distance: Tensor = (e.float().square().sum(1, keepdim=True) - closeness).abs() * self.filled.float()
        return distance

    @torch.no_grad()
    def fit(
        self, places: Tensor, images: Tensor, looked_at: Sequence[tuple[Features, Tensor]], seed: int
    ) -> list[Tensor]:
        """Choose the entries, and return how unfamiliar good images are to what other good images gave.

        With fewer than two images nothing can be said of other images, and the memory stays empty.

        Args:
            places: joined features of good places, `(P, C)`, fp16 or wider.
            images: which image each is of, `(P,)`.
            looked_at: batches of good images' `F_X`, and which images they are, `(N,)`.
            seed: of the projection.

        Returns:
            For each batch what `forward` would, `(N, 1, h, w)`, of a memory that has seen one half of the images, where
            these are of the other half.
        """
        known = torch.unique(images)
        if len(known) < 2:
            return [torch.zeros(len(ids), 1, *self.grid) for _, ids in looked_at]
        device = self.nearest.weight.device
        self.cpu()
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(places.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
        odd = torch.isin(images, known[1::2])
        self.filled.fill_(1)
        distances = []
        halves = [typical(places[half], self.nearest.out_channels, projection) for half in (~odd, odd)]
        for reference, ids in looked_at:
            e = joined([f.float().cpu() for f in reference], self.grid)
            of_odd = torch.isin(ids, known[1::2])
            both = []
            for entries in halves:
                self._keep(entries)
                both.append(self._distance(e))
            distances.append(torch.where(of_odd[:, None, None, None], both[0], both[1]))
        self._keep(typical(places, self.nearest.out_channels, projection))
        distances = related(distances, self.level)
        self.to(device)
        return distances

    def _keep(self, entries: Tensor) -> None:
        assert self.nearest.bias is not None
        # Where there are fewer places than entries, the last is there several times.
        entries = torch.cat([entries, entries[-1:].expand(self.nearest.out_channels - len(entries), -1)])
        self.nearest.weight.copy_(2 * entries[:, :, None, None])
        self.nearest.bias.copy_(-entries.square().sum(1))


def middle(scales: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Return the `(height, width)` that features of all scales are joined at: the middle one's."""
    return scales[len(scales) // 2][1:]


def joined(reference: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Return unit vectors of all scales behind each other at the places of `grid`, `(N, C, h, w)`.

    What is finer is averaged, what is coarser interpolated, and each scale then brought to unit length.
    """
    return torch.cat([_unit(resized(f, grid)) for f in reference], 1)


def resized(f: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps `(N, C, h, w)` at another size; one scale down, that is the mean of four."""
    if tuple(f.shape[2:]) == size:
        return f
    return F.interpolate(f, size=size, mode="bilinear", align_corners=False)


def vectors(features: Tensor) -> Tensor:
    """Return every place's vector as a row, `(N, places, C)`, in main memory."""
    return features.flatten(2).transpose(1, 2).cpu()


def _unit(f: Tensor) -> Tensor:
    length = f.float().square().sum(1, keepdim=True).sqrt().clamp_min(SHORTEST)
    return f / length.to(f.dtype)


def typical(places: Tensor, count: int, projection: Tensor) -> Tensor:
    """Return up to `count` typical ones of `places` `(P, C)`, float32: k-centres, then means of what is nearest."""
    count = min(count, len(places))
    projected = torch.cat([part.float() @ projection for part in torch.split(places, _CHUNK)])
    chosen = torch.zeros(count, dtype=torch.long)
    distance = torch.full((len(projected),), torch.inf)
    for place in range(1, count):
        distance = torch.minimum(distance, (projected - projected[chosen[place - 1]]).square().sum(1))
        chosen[place] = distance.argmax()
    centres = places[chosen].float()
    sums, members = torch.zeros_like(centres), torch.zeros(count)
    for part in torch.split(places, _CHUNK):
        rows = part.float()
        own = (2 * rows @ centres.T - centres.square().sum(1)).argmax(1)
        sums.index_add_(0, own, rows)
        members.index_add_(0, own, torch.ones(len(rows)))
    # A centre that is there twice may have no members.
    return torch.where(members[:, None] > 0, sums / members.clamp_min(1)[:, None], centres)
