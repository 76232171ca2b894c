"""What marked images have and good ones do not, by place: a small patch classifier that image labels teach.

Multiple instance learning (Dietterich et al. 1997): of a marked image only the most suspicious places are taken for
defects, by the detector's own distance at first, then by the classifier that they gave.  Good images are defective
nowhere, and those of their places that the classifier takes for defects teach it most: what tells a hole from a spot
that good parts have, too.

What it has seen it knows by heart, so images that it has not seen say what its answer is worth.  Classifiers that were
taught without a quarter of the images, each in turn, judge that quarter: only what hardly any place of a good image
reaches there is evidence, and it counts as much as helps to tell the marked images from the good ones, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.redi.level import SHARPNESS, worst_of
from train.redi.memory import resized

#: Channels between the features and the verdict.
HIDDEN = 32

#: Share of a marked image's places that are taken for defects.
SUSPICIOUS = 1 / 50

#: Share of good images' places that may give evidence.
FALSE = 1e-3

#: Parts that images are divided into, each to judge a classifier that was taught without it.
PARTS = 4

#: What evidence is multiplied by, strongest first: the first that ranks images not learnt from hardly worse than the
#: best one does, by no more than `WORSE` of the pairs of a good and a marked image.
STRENGTHS, WORSE = (2.0, 1.0, 0.5, 0.0), 0.01

#: How often the defects' places are chosen anew, and steps of training after each choice.
ROUNDS, STEPS = 3, 400

#: Places per step, of good images and of marked ones.
GOOD_BATCH, MARKED_BATCH = 1024, 256

#: Every so many steps, this many good places are found that look most like defects; they are half of what is learnt.
HARD_EVERY, HARD = 100, 3000

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2

#: Of whitening: added to every eigenvalue, as a share of their mean.
SHRINKAGE = 0.01

#: Cosines below this count like it.
SMALL = 1e-3

#: Places that are looked at together.
_CHUNK = 16384


#: Places of some images: their joined features, `(images, places, C)`, and the detector's distance there, 0 to 2,
#: `(images, places)`.
Places = tuple[Tensor, Tensor]


class MarkEvidence(nn.Module):
    """The classifier, on unit vectors of all scales at the places of the middle one.  Untaught, it finds nothing.

    Args:
        scales: `(channels, height, width)`, finest first.
    """

    def __init__(self, scales: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.sizes = [(height, width) for _, height, width in scales]
        self.hidden = nn.Conv2d(sum(channels for channels, _, _ in scales), HIDDEN, 1)
        self.verdict = nn.Conv2d(HIDDEN, 1, 1)
        nn.init.zeros_(self.verdict.weight)
        assert self.verdict.bias is not None
        nn.init.zeros_(self.verdict.bias)

    def forward(self, e: Tensor) -> list[Tensor]:
        """Return the evidence in joined features `(N, C, h, w)` at each scale, `(N, 1, h, w)`, never negative.

        These are logits beyond the limit, multiplied by their strength.
        """
        found = F.relu(self.verdict(F.relu(self.hidden(e))))
        return [resized(found, size) for size in self.sizes]

    @torch.no_grad()
    def fit(self, good: Places, marked: Places, seed: int) -> float:
        """Learn from the places of good and of marked images; the state of torch's generator stays.

        Args:
            good: features fp16 or wider.
            marked: the same of the marked images.
            seed: of the order of learning.

        Returns:
            How much evidence counts, one of `STRENGTHS`; a single image on either side leaves none to judge by.
        """
        mean, whitening = _whitening(good[0].flatten(0, 1))
        good = torch.stack([((image.float() - mean) @ whitening).half() for image in good[0]]), good[1]
        marked = (marked[0].float() - mean) @ whitening, marked[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = _found(good, marked)
            if min(len(good[0]), len(marked[0])) > 1:
                limit, strength = _judged(good, marked)
            else:
                limit, strength = _limit(_logits(classifier, good[0].flatten(0, 1))), 1.0
        # Whitening, limit and strength become part of the layers.
        weight = classifier.hidden.weight @ whitening.T
        self.hidden.weight.copy_(weight[:, :, None, None])
        self.verdict.weight.copy_(strength * classifier.verdict.weight[:, :, None, None])
        for conv, bias in (
            (self.hidden, classifier.hidden.bias - weight @ mean),
            (self.verdict, strength * (classifier.verdict.bias - limit)),
        ):
            assert conv.bias is not None
            conv.bias.copy_(bias)
        return strength


class _Classifier(nn.Module):
    """The same on whitened vectors `(…, C)`, without a limit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, HIDDEN)
        self.verdict = nn.Linear(HIDDEN, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.verdict(F.relu(self.hidden(vectors)))
        return logits


def _judged(good: Places, marked: Places) -> tuple[float, float]:
    """Return beyond which logit there is evidence, and how much it counts, by images that were not learnt from."""
    parts = min(PARTS, len(good[0]), len(marked[0]))
    logits, limits = [torch.empty(distance.shape) for _, distance in (good, marked)], []
    for part in range(parts):
        classifier = _found(*(_without(images, part, parts) for images in (good, marked)))
        for images, answers in zip((good, marked), logits, strict=True):
            own = answers[part::parts]
            own.copy_(_logits(classifier, images[0][part::parts].flatten(0, 1)).view(own.shape))
        limits.append(_limit(logits[0][part::parts]))
    limit = sum(limits) / parts
    beyond = [(distance, F.relu(logit - limit)) for (_, distance), logit in zip((good, marked), logits, strict=True)]
    right = [_ranked(*(_score(distance, strength * e) for distance, e in beyond)) for strength in STRENGTHS]
    return limit, next(strength for strength, r in zip(STRENGTHS, right, strict=True) if r >= max(right) - WORSE)


def _without(images: Places, part: int, parts: int) -> Places:
    others = torch.arange(len(images[0])) % parts != part
    return images[0][others], images[1][others]


def _score(distance: Tensor, evidence: Tensor) -> Tensor:
    """Return images' scores from what is at their places, `(images, places)`, as the statistics put it together."""
    cosine = (1 - distance).clamp_min(SMALL)
    together = 1 - (cosine**-2 + SHARPNESS * evidence.square()).rsqrt()
    return worst_of(together)


def _ranked(good: Tensor, marked: Tensor) -> float:
    """Return the share of pairs where the marked image has the higher score; of equal ones half."""
    difference = marked[:, None] - good[None]
    return float(((difference > 0).float() + 0.5 * (difference == 0)).mean())


def _limit(logits: Tensor) -> float:
    return float(logits.flatten().sort().values[math.ceil((1 - FALSE) * (logits.numel() - 1))])


def _found(good: Places, marked: Places) -> _Classifier:
    """Return what tells suspicious places of the marked images from those of the good ones, all of them whitened."""
    vectors, suspicion = marked
    count = max(1, round(SUSPICIOUS * suspicion.shape[1]))
    for _ in range(ROUNDS):
        places = suspicion.topk(count, dim=1).indices
        defects = vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[2])).flatten(0, 1)
        classifier = _taught(good[0].flatten(0, 1), defects)
        suspicion = classifier(vectors)[..., 0]
    return classifier


def _taught(good: Tensor, defects: Tensor) -> _Classifier:
    """Return a classifier that has learnt that these whitened vectors are defects, and those are not."""
    classifier = _Classifier(good.shape[1])
    optimiser = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    hard, half = good, GOOD_BATCH // 2
    for step in range(1, STEPS + 1):
        normal = torch.cat([_some(good, half), _some(hard, half)])
        with torch.enable_grad():
            loss = F.softplus(classifier(normal)).mean() + F.softplus(-classifier(_some(defects, MARKED_BATCH))).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % HARD_EVERY == 0:
            hard = good[_logits(classifier, good).topk(min(HARD, len(good))).indices]
    return classifier


def _some(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randint(len(rows), (count,))].float()


def _parts(rows: Tensor) -> list[Tensor]:
    return [rows[begin : begin + _CHUNK] for begin in range(0, len(rows), _CHUNK)]


def _logits(classifier: _Classifier, rows: Tensor) -> Tensor:
    return torch.cat([classifier(part.float())[:, 0] for part in _parts(rows)])


def _whitening(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows' mean, and what to multiply centred rows by for about unit covariance, float32."""
    total, moments = torch.zeros(()), torch.zeros(())
    for part in map(Tensor.double, _parts(rows)):
        total, moments = total + part.sum(0), moments + part.T @ part
    mean = total / len(rows)
    values, vectors = torch.linalg.eigh(moments / len(rows) - mean[:, None] * mean)
    values = values.clamp_min(0)
    spread = values.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return mean.float(), (vectors / (values + SHRINKAGE * spread).sqrt()).float()
