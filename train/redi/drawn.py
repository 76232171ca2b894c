"""Evidence without any marked image: what defects that are drawn onto good images have, and good parts do not.

Real defects differ from drawn ones, and no more is asked of them than to lie on the same side: a place that a
classifier takes for a drawn defect, as it does with hardly any place of good images that it has not seen, is the more
unusual for it.  How far beyond that limit it is says little, so such evidence soon comes to one, and never to more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.redi.evidence import Evidence
from train.redi.places import Whitening, limit_of, logits_of, taught

#: What evidence comes to at most.
MOST = 1.0

#: Classifiers that are taught: one by each half of the images, to judge the other, and one by all.
CLASSIFIERS = 3


@dataclass(frozen=True)
class Shown:
    """Joined features of some places, `(P, C)`, fp16, and which image each is of, `(P,)`."""

    places: Tensor
    images: Tensor


class DrawnEvidence(Evidence):
    """What drawn defects teach."""

    def __init__(self, scales: Sequence[tuple[int, int, int]]) -> None:
        super().__init__(scales, MOST)

    @torch.no_grad()
    def fit(
        self,
        good: Shown,
        defects: Shown,
        beside: Shown,
        steps: int,
        seed: int,
        after_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Learn to tell defects from good places and from what is beside the defects; torch's generator stays.

        With good places of one image alone, or without defects, it finds nothing: nothing can be said of other images.

        Args:
            good: of good images as they are.
            defects: of images that were drawn on.
            beside: what is good about these.
            steps: of learning, each of `CLASSIFIERS` times.
            seed: of its order.
            after_step: is called so often.
        """
        known = torch.unique(good.images)
        if len(known) < 2 or not (len(defects.places) and len(beside.places)):
            return
        whitening = Whitening(good.places)
        rows = [whitening(shown.places) for shown in (good, defects, beside)]
        odd = [torch.isin(shown.images, known[1::2]) for shown in (good, defects, beside)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            limits = []
            for half in (odd, [~each for each in odd]):
                normal, defective, near = (r[of] for r, of in zip(rows, half, strict=True))
                if len(defective) and len(near):
                    classifier = taught([normal, near], defective, steps, after_step)
                    limits.append(limit_of(logits_of(classifier, rows[0][~half[0]])))
            if limits:
                classifier = taught([rows[0], rows[2]], rows[1], steps, after_step)
                self.become(classifier, whitening, sum(limits) / len(limits), 1.0)
