"""What marked images have and good ones do not, by place: a small patch classifier that image labels teach.

Multiple instance learning (Dietterich et al. 1997): of a marked image only the most suspicious places are taken for
defects, by the detector's own distance at first, then by the classifier that they gave.  Good images are defective
nowhere, and those of their places that the classifier takes for defects teach it most: what tells a hole from a spot
that good parts have, too.  Only what it finds counts, and only where hardly any place of a good image gets as far, so
that defects of other kinds are seen as well as without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.redi.discriminate import Features
from train.redi.memory import joined, resized

#: Channels between the features and the verdict.
HIDDEN = 32

#: Share of a marked image's places that are taken for defects.
SUSPICIOUS = 1 / 200

#: Share of good images' places that may give evidence.
FALSE = 1e-3

#: How often the defects' places are chosen anew, and steps of training after each choice.
ROUNDS, STEPS = 3, 400

#: Places per step, of good images and of marked ones.
GOOD_BATCH, MARKED_BATCH = 1024, 256

#: Every so many steps, this many good places are found that look most like defects; they are half of what is learnt.
HARD_EVERY, HARD = 100, 3000

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2

#: Of whitening: added to every eigenvalue, as a share of their mean.
SHRINKAGE = 0.01

#: Places that are looked at together.
_CHUNK = 16384


class MarkEvidence(nn.Module):
    """The classifier, on unit vectors of all scales at the places of the middle one.  Untaught, it finds nothing.

    Args:
        scales: `(channels, height, width)`, finest first.
    """

    def __init__(self, scales: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.sizes = [(height, width) for _, height, width in scales]
        self.grid = self.sizes[len(scales) // 2]
        self.hidden = nn.Conv2d(sum(channels for channels, _, _ in scales), HIDDEN, 1)
        self.verdict = nn.Conv2d(HIDDEN, 1, 1)
        nn.init.zeros_(self.verdict.weight)
        assert self.verdict.bias is not None
        nn.init.zeros_(self.verdict.bias)

    def forward(self, reference: Features) -> list[Tensor]:
        """Return the evidence in `F_X` at each scale, `(N, 1, h, w)`, logits beyond the limit, never negative."""
        found = F.relu(self.verdict(F.relu(self.hidden(joined(reference, self.grid)))))
        return [resized(found, size) for size in self.sizes]

    @torch.no_grad()
    def fit(self, good: Tensor, marked: Tensor, suspicion: Tensor, seed: int) -> None:
        """Learn from the joined features of good and of marked images; the state of torch's generator stays.

        Args:
            good: `(places, C)` of all good images, fp16 or wider.
            marked: `(images, places, C)`.
            suspicion: of the marked images' places, `(images, places)`, larger where a defect is likelier.
            seed: of the order of learning.
        """
        mean, whitening = _whitening(good)
        good = torch.cat([((part.float() - mean) @ whitening).half() for part in _parts(good)])
        marked = (marked.float() - mean) @ whitening
        count = max(1, round(SUSPICIOUS * marked.shape[1]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(ROUNDS):
                places = suspicion.topk(count, dim=1).indices
                defects = marked.gather(1, places[..., None].expand(-1, -1, marked.shape[2])).flatten(0, 1)
                classifier = _taught(good, defects)
                suspicion = classifier(marked)[..., 0]
        logits = _logits(classifier, good)
        limit = logits.sort().values[math.ceil((1 - FALSE) * (len(logits) - 1))]
        # Whitening and limit become part of the layers.
        weight = classifier.hidden.weight @ whitening.T
        self.hidden.weight.copy_(weight[:, :, None, None])
        self.verdict.weight.copy_(classifier.verdict.weight[:, :, None, None])
        for conv, bias in (
            (self.hidden, classifier.hidden.bias - weight @ mean),
            (self.verdict, classifier.verdict.bias - limit),
        ):
            assert conv.bias is not None
            conv.bias.copy_(bias)


class _Classifier(nn.Module):
    """The same on whitened vectors `(…, C)`, without a limit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, HIDDEN)
        self.verdict = nn.Linear(HIDDEN, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.verdict(F.relu(self.hidden(vectors)))
        return logits


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
