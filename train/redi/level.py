"""How much of what is unusual an image has on the whole, as far as that tells of the image and not of its defects.

Where good parts differ in how rough they are, features of a rough one are rarer and worse recovered everywhere, and its
worst spots outshine a crack in a smooth one.  Dividing by the image's own level puts that right.  Where good images
differ in how much there is on them it would do harm, since what is unusual on a full one is as unusual on an empty one.
Good images say which it is: the logarithm of their worst places rises with their level about as much in the first case,
not at all in the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Levels beyond those of this share of good images, at either end, count like these: a large defect raises the level.
UNUSUAL = 0.05

#: Share of an image's places that are its worst.
WORST = 0.01

#: What the worst places of good parts reach in one cue counts like a squared tangent of this.
SHARPNESS = 4.0

#: With slopes up to the first nothing is divided, from the second on by the whole level.
SLOPES = (0.25, 0.75)

#: Keeps logarithms finite.
SMALL = 1e-3

#: Variance of levels, logarithms, below which all images have the same.
SAME = 1e-6


class ImageLevel(nn.Module):
    """The level of a quantity at one scale: its geometric mean over the places.  Unfitted, it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.usual: Tensor
        self.register_buffer("usual", torch.zeros(()))
        self.limits: Tensor
        self.register_buffer("limits", torch.zeros(2))
        self.share: Tensor
        self.register_buffer("share", torch.zeros(()))

    def forward(self, squares: Tensor) -> Tensor:
        """Return what to multiply roots of the quantity `(N, 1, h, w)` by, float32 `(N, 1, 1, 1)`."""
        lowest, highest = self.limits.float()
        level = torch.minimum(torch.maximum(_level(squares), lowest), highest)
        return (self.share.float() / 2 * (self.usual.float() - level)).exp()

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor]) -> None:
        """Set it from the quantity in good images, batches of `(N, 1, h, w)`."""
        levels = torch.cat([_level(squares).flatten() for squares in batches]).double().cpu()
        worst = torch.cat([(worst_of(squares) + SMALL).log() for squares in batches]).double().cpu()
        centred = levels - levels.mean()
        variance = centred.square().mean()
        slope = float((centred * worst).mean() / variance) if variance > SAME else 0.0
        none, whole = SLOPES
        self.share.fill_(min(max((slope - none) / (whole - none), 0.0), 1.0))
        self.usual.copy_(levels.mean())
        self.limits.copy_(levels.quantile(torch.tensor([UNUSUAL, 1 - UNUSUAL], dtype=levels.dtype)))


def _level(squares: Tensor) -> Tensor:
    """Return the logarithm of each image's level, float32 `(N, 1, 1, 1)`."""
    return (squares.float() + SMALL).log().mean((2, 3), keepdim=True)


def levelled(cue: Tensor, level: ImageLevel | None) -> Tensor:
    """Return a cue `(N, 1, h, w)` relative to the image's level of it; without one, as it is."""
    if level is None:
        return cue
    factor: Tensor = level(cue)
    return cue * factor.square()


def related(cues: Sequence[Tensor], level: ImageLevel | None) -> list[Tensor]:
    """Set the level, if there is one, from good images' cues, and return them relative to it."""
    if level is not None:
        level.fit(cues)
    return [levelled(cue, level) for cue in cues]


def worst_of(squares: Tensor) -> Tensor:
    """Return the mean of each image's worst places, `(N,)`."""
    places = squares.float().flatten(1)
    return places.topk(max(1, round(WORST * places.shape[1]))).values.mean(1)
