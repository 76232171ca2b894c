"""A small classifier of single places: what tells features of defects from those of good parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Channels between the features and the verdict.
HIDDEN = 32

#: Share of good images' places that may be beyond the limit.
FALSE = 1e-3

#: Places of good images that are learnt from, at most: those of about 200 images of 256².
GOOD_PLACES = 200_000

#: Places per step, of good images and of defects.
GOOD_BATCH, DEFECT_BATCH = 1024, 256

#: Every so many steps, this many good places are found that look most like defects; they are half of what is learnt.
HARD_EVERY, HARD = 100, 3000

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2

#: Of whitening: added to every eigenvalue, as a share of their mean.
SHRINKAGE = 0.01

#: Places that are looked at together.
_CHUNK = 16384


class Classifier(nn.Module):
    """From whitened vectors `(…, C)` to the logit that they are a defect's, `(…, 1)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, HIDDEN)
        self.verdict = nn.Linear(HIDDEN, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.verdict(F.relu(self.hidden(vectors)))
        return logits


class Whitening:
    """Makes good places' vectors about uncorrelated, of unit variance.

    Args:
        rows: those vectors, `(P, C)`, fp16 or wider.
    """

    def __init__(self, rows: Tensor) -> None:
        total, moments = torch.zeros(()), torch.zeros(())
        for part in map(Tensor.double, _parts(rows)):
            total, moments = total + part.sum(0), moments + part.T @ part
        mean = total / len(rows)
        values, vectors = torch.linalg.eigh(moments / len(rows) - mean[:, None] * mean)
        values = values.clamp_min(0)
        spread = values.mean().clamp_min(torch.finfo(torch.float32).tiny)
        self.mean = mean.float()
        self.matrix = (vectors / (values + SHRINKAGE * spread).sqrt()).float()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors `(…, C)` whitened, fp16."""
        rows = _parts(vectors.flatten(0, -2))
        return torch.cat([((part.float() - self.mean) @ self.matrix).half() for part in rows]).view(vectors.shape)


def taught(
    good: Sequence[Tensor], defects: Tensor, steps: int, after_step: Callable[[], object] = lambda: None
) -> Classifier:
    """Return a classifier that has learnt that these whitened vectors `(P, C)` are defects, and those are not.

    Of several kinds of good ones each step has as many, and as many again of the first that look most like defects.
    """
    first = good[0]
    classifier = Classifier(first.shape[1])
    optimiser = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    hard, share = first, GOOD_BATCH // (len(good) + 1)
    for step in range(1, steps + 1):
        normal = torch.cat([_some(rows, share) for rows in (hard, *good)])
        with torch.enable_grad():
            loss = F.softplus(classifier(normal)).mean() + F.softplus(-classifier(_some(defects, DEFECT_BATCH))).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        after_step()
        if step % HARD_EVERY == 0:
            hard = first[logits_of(classifier, first).topk(min(HARD, len(first))).indices]
    return classifier


def logits_of(classifier: Classifier, rows: Tensor) -> Tensor:
    """Return the logits of whitened vectors `(P, C)`, `(P,)`."""
    return torch.cat([classifier(part.float())[:, 0] for part in _parts(rows)])


def limit_of(logits: Tensor) -> float:
    """Return the logit that all but `FALSE` of these reach at most."""
    return float(logits.flatten().sort().values[math.ceil((1 - FALSE) * (logits.numel() - 1))])


def _some(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randint(len(rows), (count,))].float()


def _parts(rows: Tensor) -> list[Tensor]:
    return [rows[begin : begin + _CHUNK] for begin in range(0, len(rows), _CHUNK)]
