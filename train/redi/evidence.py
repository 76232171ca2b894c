"""What defects have and good parts do not, by place: small classifiers of the features of all scales.

One is taught by image labels, where there are marked images (`MarkEvidence`), one by defects that are drawn onto good
images (`train.redi.drawn`).  What a classifier has seen it knows by heart, so good images that it has not seen say
beyond which logit there is evidence: what hardly any of their places reaches.

*Marks*: multiple instance learning (Dietterich et al. 1997).  Of a marked image only the most suspicious places are
taken for defects, by the detector's own distance at first, then by the classifier that they gave.  Good images are
defective nowhere, and those of their places that the classifier takes for defects teach it most: what tells a hole from
a spot that good parts have, too.  Classifiers that were taught without a quarter of the images, each in turn, judge
that quarter, and their evidence counts as much as helps to tell the marked images from the good ones, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.redi.level import SHARPNESS, worst_of
from train.redi.memory import resized
from train.redi.places import HIDDEN, Classifier, Whitening, limit_of, logits_of, taught

#: Share of a marked image's places that are taken for defects.
SUSPICIOUS = 1 / 50

#: Parts that images are divided into, each to judge a classifier that was taught without it.
PARTS = 4

#: What evidence is multiplied by, strongest first: the first that ranks images not learnt from hardly worse than the
#: best one does, by no more than `WORSE` of the pairs of a good and a marked image.
STRENGTHS, WORSE = (2.0, 1.0, 0.5, 0.0), 0.01

#: How often the defects' places are chosen anew, and steps of training after each choice.
ROUNDS, STEPS = 3, 400

#: Cosines below this count like it.
SMALL = 1e-3


#: Places of some images: their joined features, `(images, places, C)`, and the detector's distance there, 0 to 2,
#: `(images, places)`.
Places = tuple[Tensor, Tensor]


class Evidence(nn.Module):
    """A classifier of the places of the middle scale, in the core.  Untaught, it finds nothing.

    Args:
        scales: `(channels, height, width)`, finest first.
        most: what evidence comes to at most, gradually; None: no such thing.
    """

    def __init__(self, scales: Sequence[tuple[int, int, int]], most: float | None = None) -> None:
        super().__init__()
        self.sizes = [(height, width) for _, height, width in scales]
        self.most = most
        self.hidden = nn.Conv2d(sum(channels for channels, _, _ in scales), HIDDEN, 1)
        self.verdict = nn.Conv2d(HIDDEN, 1, 1)
        nn.init.zeros_(self.verdict.weight)
        assert self.verdict.bias is not None
        nn.init.zeros_(self.verdict.bias)

    def forward(self, e: Tensor) -> list[Tensor]:
        """Return the square of the evidence in joined features `(N, C, h, w)` at each scale, float32 `(N, 1, h, w)`.

        Evidence are logits beyond the limit, multiplied by their strength.
        """
        beyond = F.relu(self.verdict(F.relu(self.hidden(e))))
        squares = [resized(beyond, size).float().square() for size in self.sizes]
        return squares if self.most is None else [s / (1 + s / self.most**2) for s in squares]

    @torch.no_grad()
    def become(self, classifier: Classifier, whitening: Whitening, limit: float, strength: float) -> None:
        """Judge as this classifier does; whitening, limit and strength become part of the layers."""
        weight = classifier.hidden.weight @ whitening.matrix.T
        self.hidden.weight.copy_(weight[:, :, None, None])
        self.verdict.weight.copy_(strength * classifier.verdict.weight[:, :, None, None])
        for conv, bias in (
            (self.hidden, classifier.hidden.bias - weight @ whitening.mean),
            (self.verdict, strength * (classifier.verdict.bias - limit)),
        ):
            assert conv.bias is not None
            conv.bias.copy_(bias)


class MarkEvidence(Evidence):
    """What marked images teach."""

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
        whitening = Whitening(good[0].flatten(0, 1))
        good, marked = ((whitening(features), distance) for features, distance in (good, marked))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = _found(good, marked)
            if min(len(good[0]), len(marked[0])) > 1:
                limit, strength = _judged(good, marked)
            else:
                limit, strength = limit_of(logits_of(classifier, good[0].flatten(0, 1))), 1.0
        self.become(classifier, whitening, limit, strength)
        return strength


def _judged(good: Places, marked: Places) -> tuple[float, float]:
    """Return beyond which logit there is evidence, and how much it counts, by images that were not learnt from."""
    parts = min(PARTS, len(good[0]), len(marked[0]))
    logits, limits = [torch.empty(distance.shape) for _, distance in (good, marked)], []
    for part in range(parts):
        classifier = _found(*(_without(images, part, parts) for images in (good, marked)))
        for images, answers in zip((good, marked), logits, strict=True):
            own = answers[part::parts]
            own.copy_(logits_of(classifier, images[0][part::parts].flatten(0, 1)).view(own.shape))
        limits.append(limit_of(logits[0][part::parts]))
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


def _found(good: Places, marked: Places) -> Classifier:
    """Return what tells suspicious places of the marked images from those of the good ones, all of them whitened."""
    vectors, suspicion = marked
    count = max(1, round(SUSPICIOUS * suspicion.shape[1]))
    for _ in range(ROUNDS):
        places = suspicion.topk(count, dim=1).indices
        defects = vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[2])).flatten(0, 1)
        classifier = taught([good[0].flatten(0, 1)], defects, STEPS)
        suspicion = logits_of(classifier, vectors.flatten(0, 1)).view(suspicion.shape)
    return classifier
