"""What is usual on good parts: how well recovery does, how common a feature is, and how familiar.

A plain cosine between `F_X` and `F_Y` takes every difference alike.  Here three cues say how unusual a place is, each
in units of what the worst places of good parts reach, so that none drowns the others where it means nothing:

*Angle.*  `a = tan^2` of the angle between `F_X` and `F_Y`, over `1 + E / (2 E_mean)`.  `E` is what one minus the cosine
usually is on good parts where the recovered features are like these and at this place, a ridge regression of its
logarithm.  Recovery is worse on texture than on plain surfaces, and worse at outlines; what counts is how much worse
it is than usual.

*Density.*  `g = |S^(-1/2) (x - mu)|^2`: the Mahalanobis distance of `x = F_X / |F_X|` from what good images have at
this scale (Rippel, Mertens and Merhof 2020 judge whole images so).  `mu` is a polynomial in the place, `S` the
covariance of what is left, wherever it stands.  It sees what recovery gave back because the map showed it, such as a
crack's edges.

*Memory.*  `n`, the squared distance to the nearest typical feature of good parts (`train.redi.memory`).

Together, per place and scale:

    distance = 1 - 1 / sqrt(1 + 4 (a / A + density_weight g / G + 1.5 n^2 / N))

with the sign of the cosine, where `A`, `G` and `N` are the means over good images of their worst hundredth.  Each cue
is first divided by the image's own level of it as far as `train.redi.level` finds that right.  With the angle alone,
and `A` of 4, this is about one minus the cosine.

The core gives, in the place of the features, two vectors in a plane whose cosine is one minus this distance: kernels,
bundles and stations know nothing of it, and read two channels where there were hundreds.

What `train.redi.evidence` finds, of drawn defects and of what marked images have, where there are any, adds four times
its square to the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.redi.discriminate import Features
from train.redi.drawn import DrawnEvidence
from train.redi.evidence import Evidence, MarkEvidence
from train.redi.level import SHARPNESS, ImageLevel, levelled, related, worst_of
from train.redi.memory import FeatureMemory, joined, middle, resized

#: What is added to every eigenvalue of a covariance, as a share of their mean.
SHRINKAGE = 0.01

#: Penalty of the regression, as a share of a feature's mean square.
RIDGE = 1e-3

#: The expected distance divides from about this many times its mean on; below, the angle counts as it is.
TOLERATED = 2.0

#: How much the memory counts: as much as half again of another cue.
FAMILIARITY = 1.5

#: How far edges reach into the input, as shares of its side.
EDGES = (1 / 64, 1 / 16)

#: Keeps logarithms of distances finite, and what cues are divided by.
SMALL = 1e-3

#: Mean variance of unit vectors' components below which they are all one and the same.
FLAT = 1e-12

#: Shorter vectors have no direction.
SHORTEST = 1e-6

#: Added to the squared cosine that a tangent divides by: beyond an angle of this cosine, all are as good as right ones.
RIGHT = 0.1**2

#: One scale of some good images: `F_X` and `F_Y`, each `(N, C, h, w)`.
Pair = tuple[Tensor, Tensor]


class ScaleStatistics(nn.Module):
    """The statistics of one scale.  Unfitted, the angle alone counts, and all angles are expected alike.

    Args:
        channels: of the scale.
        size: its `(height, width)`.
        density_weight: of `g`; 0: without density.
        expected: False: without the expected distance.
        level: False: `a` and `g` as they are, however large they are in the whole image.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], density_weight: float, expected: bool, level: bool = True
    ) -> None:
        super().__init__()
        self.weight = density_weight
        self.units: Tensor
        self.register_buffer("units", torch.tensor([1.0, 0.0, 0.0]))
        self.angle_level = ImageLevel() if level else None
        if density_weight:
            polynomial = _polynomial(*size).float()[None]
            self.density = _zero(nn.Conv2d(channels, channels, 1, bias=False))
            self.centre = _zero(nn.Conv2d(polynomial.shape[1], channels, 1, bias=False))
            self.polynomial: Tensor
            self.register_buffer("polynomial", polynomial, persistent=False)
            self.density_level = ImageLevel() if level else None
        self.expects = expected
        if expected:
            self.expected = _zero(nn.Conv2d(channels, 1, 1, bias=False))
            self.place: Tensor
            self.register_buffer("place", torch.zeros(1, 1, *size))
            self.limits: Tensor
            self.register_buffer("limits", torch.zeros(2))

    def forward(self, x: Tensor, y: Tensor, unfamiliar: Tensor | None = None, evidence: Tensor | None = None) -> Tensor:
        """Return the distance of `x` and `y`, `(N, C, h, w)`, at every place: float32 `(N, 1, h, w)`, 0 to 2.

        `unfamiliar` is `n`, and `evidence` the square of that of a defect, `(N, 1, h, w)`.
        """
        length_x, length_y = _length(x), _length(y)
        cosine = _cosine(x, y, length_x, length_y)
        angle = levelled(_squared_tangent(cosine), self.angle_level)
        total = self.units[0].float() * self._unexpected(angle, y, length_y)
        if self.weight:
            total = total + self.units[1].float() * levelled(self._rare(x, length_x), self.density_level)
        if unfamiliar is not None:
            total = total + self.units[2].float() * unfamiliar.float().square()
        if evidence is not None:
            total = total + SHARPNESS * evidence.float()
        return 1 - cosine.sign() * (1 + total).rsqrt()

    def _unexpected(self, angle: Tensor, y: Tensor, length_y: Tensor) -> Tensor:
        """Return `a`, float32 `(N, 1, h, w)`, of an angle relative to the image's level."""
        return angle / (1 + self._usual(y, length_y) / TOLERATED) if self.expects else angle

    def _rare(self, x: Tensor, length_x: Tensor) -> Tensor:
        """Return `g` up to a factor, whatever the image's level, float32 `(N, 1, h, w)`."""
        usual = length_x * self.centre(self.polynomial.to(x.dtype)).float()
        whitened: Tensor = self.density(x).float() - usual
        return whitened.square().sum(1, keepdim=True) / length_x.clamp_min(SHORTEST).square()

    def _usual(self, y: Tensor, length_y: Tensor) -> Tensor:
        """Return `E / E_mean`, float32 `(N, 1, h, w)`."""
        logarithm = self.expected(y).float() / length_y.clamp_min(SHORTEST) + self.place.float()
        lowest, highest = self.limits.float()
        return torch.minimum(torch.maximum(logarithm, lowest), highest).exp()

    @torch.no_grad()
    def fit(self, pairs: Sequence[Pair], unfamiliar: Sequence[Tensor] | None = None) -> None:
        """Set the statistics from batches of good images, and how unfamiliar they are to a memory of others."""
        rare: list[Tensor] = []
        if self.weight:
            self._fit_density([x for x, _ in pairs])
            rare = related([self._rare(x.float(), _length(x)) for x, _ in pairs], self.density_level)
        squared = [_squared_tangent(_cosine(x, y, _length(x), _length(y))) for x, y in pairs]
        angles = related(squared, self.angle_level)
        if self.expects:
            self._fit_expected(pairs, angles)
        angles = [self._unexpected(a, y.float(), _length(y)) for a, (_, y) in zip(angles, pairs, strict=True)]
        cues = [angles, rare, [n.square() for n in unfamiliar or []]]
        weights = (1.0, self.weight, FAMILIARITY)
        for place, (cue, weight) in enumerate(zip(cues, weights, strict=True)):
            worst = torch.cat([worst_of(values) for values in cue]).mean() if cue else torch.inf
            self.units[place] = SHARPNESS * weight / max(float(worst), SMALL)

    def _fit_density(self, batches: Sequence[Tensor]) -> None:
        terms = self.polynomial.double().cpu().flatten(2)[0]
        images, total, moments = 0, torch.zeros(()), torch.zeros(())
        for x in batches:
            columns = _columns(F.normalize(x.float(), dim=1))
            images += len(x)
            total = total + columns.reshape(len(columns), len(x), -1).sum(1)
            moments = moments + columns @ columns.T
        # All images have the same places, so the least squares' solution is that of their mean, and orthogonal to what
        # it leaves.
        mean = total / images @ torch.linalg.pinv(terms)
        usual = mean @ terms
        covariance = (moments / images - usual @ usual.T) / terms.shape[1]
        spread = covariance.diagonal().mean()
        if not spread > FLAT:
            return
        values, vectors = torch.linalg.eigh(covariance / spread)
        values = values.clamp_min(0)
        # The mean of g over these features is to be one: the trace of what whitening makes of their covariance.
        trace = (values / (values + SHRINKAGE)).sum()
        whitening = (vectors * (1 / trace / spread / (values + SHRINKAGE)).sqrt()) @ vectors.T
        self.density.weight.copy_(whitening[:, :, None, None])
        self.centre.weight.copy_((whitening @ mean)[:, :, None, None])

    def _fit_expected(self, pairs: Sequence[Pair], angles: Sequence[Tensor]) -> None:
        place = _places(*self.place.shape[2:])
        gram, right, count, total = torch.zeros(()), torch.zeros(()), 0, 0.0
        for (_, y), angle in zip(pairs, angles, strict=True):
            terms = place.flatten(1).repeat(1, len(y))
            rows = torch.cat([_columns(F.normalize(y.float(), dim=1)), terms])
            column = 1 - (1 + _columns(angle)[0]).rsqrt()
            gram, right = gram + rows @ rows.T, right + rows @ (column + SMALL).log()
            count, total = count + len(column), total + float(column.sum())
        channels = self.expected.weight.shape[1]
        penalty = RIDGE * count / channels * torch.eye(len(gram), dtype=gram.dtype)
        solved = torch.linalg.solve(gram + penalty, right)
        mean = max(total / count, SMALL)
        self.expected.weight.copy_(solved[:channels].view(1, -1, 1, 1))
        self.place.copy_((torch.einsum("p,phw->hw", solved[channels:], place) - torch.tensor(mean).log())[None, None])
        self.limits.copy_(torch.tensor([-torch.inf, torch.inf]))
        fitted = [self._usual(y.float(), _length(y)).log() for _, y in pairs]
        # Features that good parts do not have may expect anything.
        self.limits.copy_(torch.stack([min(f.min() for f in fitted), max(f.max() for f in fitted)]))


class FeatureStatistics(nn.Module):
    """The statistics of every scale.

    Args:
        scales: `(channels, height, width)`, finest first.
        density_weight: see `ScaleStatistics`.
        expected: see `ScaleStatistics`.
        level: see `ScaleStatistics`.
        memory: how many typical features are kept; 0: none, without that cue.
        marked: there is evidence of marked images to count, too.
        drawn: there is evidence of drawn defects to count, too.
    """

    def __init__(
        self,
        scales: Sequence[tuple[int, int, int]],
        density_weight: float,
        expected: bool,
        marked: bool = False,
        level: bool = True,
        memory: int = 0,
        drawn: bool = False,
    ) -> None:
        super().__init__()
        self.taken = bool(density_weight) or expected or level or marked or memory > 0 or drawn
        self.scales = nn.ModuleList(ScaleStatistics(c, (h, w), density_weight, expected, level) for c, h, w in scales)
        self.grid = middle(scales)
        self.memory = FeatureMemory(scales, memory, level) if memory else None
        self.marks = MarkEvidence(scales) if marked else None
        self.drawn = DrawnEvidence(scales) if drawn else None

    def channels(self, scale: int) -> int:
        """Return how many channels come out of one scale that has so many."""
        return 2 if self.taken else scale

    def forward(self, reference: Features, recovered: Features) -> tuple[Tensor, ...]:
        """Return what is compared in the place of `F_X`, then of `F_Y`, of any number of images, three scales each."""
        if not self.taken:
            return (*reference, *recovered)
        planes = [_plane(distance) for distance in self.distances(reference, recovered)]
        dtype = reference[0].dtype
        return (*(x.to(dtype) for x, _ in planes), *(y.to(dtype) for _, y in planes))

    def distances(self, reference: Features, recovered: Features) -> list[Tensor]:
        """Return the distance of every scale, float32 `(N, 1, h, w)`, all evidence in it."""
        unfamiliar: Sequence[Tensor | None] = [None] * len(self.scales)
        evidence = unfamiliar
        finders: list[Evidence] = [finder for finder in (self.drawn, self.marks) if finder is not None]
        if self.memory is not None or finders:
            e = joined(reference, self.grid)
            if self.memory is not None:
                unfamiliar = _at_scales(self.memory(e), reference)
            if finders:
                evidence = [sum(squares[1:], squares[0]) for squares in zip(*(f(e) for f in finders), strict=True)]
        cues = zip(self.scales, reference, recovered, unfamiliar, evidence, strict=True)
        return [scale(x, y, n, e) for scale, x, y, n, e in cues]

    def fit(self, batches: Sequence[tuple[Features, Features]], unfamiliar: Sequence[Tensor] = ()) -> None:
        """Set the statistics from batches of `(F_X, F_Y)` of good images, and what `FeatureMemory.fit` gave."""
        ns = [_at_scales(n, reference) for n, (reference, _) in zip(unfamiliar, batches, strict=bool(unfamiliar))]
        for level, scale in enumerate(self.scales):
            assert isinstance(scale, ScaleStatistics)
            scale.fit(
                [(reference[level], recovered[level]) for reference, recovered in batches], [n[level] for n in ns]
            )


def _at_scales(n: Tensor, reference: Features) -> list[Tensor]:
    """Return the memory's answer at the size of every scale."""
    return [resized(n, (f.shape[2], f.shape[3])) for f in reference]


def _plane(distance: Tensor) -> Pair:
    """Return unit vectors of a plane, each `(N, 2, h, w)`, whose cosine is one minus the distance `(N, 1, h, w)`."""
    # Half the angle to either side: half precision keeps a small distance in the second component.  Rounding may leave
    # less than zero; limits would do, but some runtimes make a number of NaN there.
    half = distance / 2
    along, aside = (1 - half).abs().sqrt(), half.abs().sqrt()
    return torch.cat([along, aside], 1), torch.cat([along, -aside], 1)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    return conv


def _length(f: Tensor) -> Tensor:
    """Return the length of every place's vector, float32 `(N, 1, h, w)`, whatever the precision around it."""
    return f.float().square().sum(1, keepdim=True).sqrt()


def _cosine(x: Tensor, y: Tensor, length_x: Tensor, length_y: Tensor) -> Tensor:
    """Return the cosine of every place's vectors, given their lengths, float32 `(N, 1, h, w)`."""
    lengths = length_x.clamp_min(SHORTEST) * length_y.clamp_min(SHORTEST)
    return (x.float() * y.float()).sum(1, keepdim=True) / lengths


def _squared_tangent(cosine: Tensor) -> Tensor:
    squared = cosine.square()
    return (1 - squared).abs() / (squared + RIGHT)


def _columns(f: Tensor) -> Tensor:
    """Return every place's vector of all images as a column, `(C, places)`, float64 in main memory."""
    return f.transpose(0, 1).flatten(1).double().cpu()


def _polynomial(height: int, width: int) -> Tensor:
    """Return the terms of a polynomial in the place, `(terms, h, w)`, float64; its origin is the middle."""
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, dtype=torch.float64)[None].expand(height, width)
    return torch.stack([torch.ones_like(y), y, x, y * y, x * x, x * y, y**4, x**4])


def _places(height: int, width: int) -> Tensor:
    """Return what the expected distance depends on of the place, `(terms, h, w)`, float64: the polynomial, and edges.

    From each edge and each corner, terms fall off exponentially over each of `EDGES`: there features also tell of the
    padding, and parts of their outlines.
    """
    terms = [_polynomial(height, width)]
    for reach in EDGES:
        rows, columns = _edges(height, reach)[:, :, None], _edges(width, reach)[:, None]
        terms.append(torch.stack([edge.expand(height, width) for edge in (*rows, *columns)]))
        terms.append(torch.stack([row * column for row in rows for column in columns]))
    return torch.cat(terms)


def _edges(cells: int, reach: float) -> Tensor:
    """Return how near each of a line's cells is to its start, and to its end, `(2, cells)`."""
    place = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return torch.exp(-torch.stack([place, 1 - place]) / reach)
