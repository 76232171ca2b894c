"""`--weights self`: an extractor learnt on the user's own good images, without any download.

Two pretext tasks without labels.  *Alteration* (CutPaste, Li et al. 2021, made dense): a piece of an image is pasted
elsewhere, scarred, or its tones changed, and every position of every scale must say whether it was altered.  *Content*:
every position must give back the pixels it stands for.  The first makes features know how this product looks, the
second keeps in them what is there, so that a thing that is missing changes them too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from train.backbones import RESNET18_SCALES, ResNet18, State, fold_batch_norm
from train.distributed import share
from train.prepared import PreparedImages
from train.trainer import Phase

F32 = NDArray[np.float32]


class DensePretext(nn.Module):
    """The extractor with its batch norms and, per scale, one 1x1 head: the alteration logit and 4x4 RGB pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = ResNet18(norm=True)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1 + 48, 1) for channels, _ in RESNET18_SCALES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return logits and pixels, `(N, 49, h, w)` per scale."""
        return [head(f) for head, f in zip(self.heads, self.extractor(x), strict=True)]


class SelfPhase(Phase):
    """Pretext training as a phase: altered crops of good images, both tasks at every scale."""

    name = "self-training"

    def __init__(self, images: PreparedImages, crop: int = 96) -> None:
        self.pretext = DensePretext().to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module: nn.Module = self.pretext
        self._images = images
        self._crop = min(crop, *images.x.shape[2:])

    def loss(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return the sum of both tasks' losses, each a mean over scales."""
        size = self._crop
        source = self._images.x
        crops = np.empty((len(indices), 3, size, size), np.float32)
        masks = np.zeros((len(indices), 1, size, size), np.float32)
        for place, row in enumerate(indices):
            top = int(rng.integers(0, source.shape[2] - size + 1))
            left = int(rng.integers(0, source.shape[3] - size + 1))
            crops[place] = source[int(row), :, top : top + size, left : left + size].float().numpy()
            # Light that changes over the whole image is normal: without this it would count as an alteration.
            crops[place] *= rng.uniform(0.85, 1.15)
            crops[place] += rng.normal(0, 0.15, (3, 1, 1)).astype(np.float32)
            for _ in range(int(rng.integers(1, 4))):
                alter(crops[place], masks[place, 0], rng)
        crops, masks = share(crops, masks)
        device = self._images.device
        x = torch.from_numpy(crops).to(device).contiguous(memory_format=torch.channels_last)
        mask = torch.from_numpy(masks).to(device)
        weight = torch.tensor(3.0, device=device)
        total = torch.zeros((), device=device)
        for answer in self.pretext(x):
            answer = answer.float()
            altered = F.adaptive_max_pool2d(mask, answer.shape[2:])
            total = total + F.binary_cross_entropy_with_logits(answer[:, :1], altered, pos_weight=weight)
            side = 4 * answer.shape[2], 4 * answer.shape[3]
            total = total + F.mse_loss(answer[:, 1:], F.pixel_unshuffle(F.adaptive_avg_pool2d(x, side), 4))
        return total / len(RESNET18_SCALES)

    def folded(self) -> State:
        """Return the learnt extractor with its batch norms folded."""
        return fold_batch_norm(self.pretext.extractor.state_dict())


def alter(image: F32, mask: F32, rng: np.random.Generator) -> None:
    """Alter one place of `image` `(3, H, W)` in place and mark it in `mask` `(H, W)`.

    A pasted patch of any aspect, a thin scar, or a change of tone in a soft blob, of small to moderate size.
    """
    height, width = mask.shape
    kind = int(rng.integers(0, 4))
    if kind == 1:
        along, across = int(rng.integers(10, max(11, width // 2))), int(rng.integers(1, 5))
        h, w = (along, across) if rng.random() < 0.5 else (across, along)
    else:
        h, w = (int(rng.integers(4, max(5, side // 4))) for side in (height, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    target = image[:, top : top + h, left : left + w]
    ys = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    ellipse = (ys * ys + xs * xs <= 1) if min(h, w) > 3 and rng.random() < 0.6 else np.ones((h, w), bool)
    if kind in (0, 1):
        from_top, from_left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        piece = image[:, from_top : from_top + h, from_left : from_left + w].copy()
        piece += rng.normal(0, 0.25, (3, 1, 1)).astype(np.float32)
    elif kind == 2:
        shift = rng.normal(0, 0.2, (3, 1, 1)) + rng.choice([-1, 1]) * rng.uniform(0.25, 1.2)
        piece = target + shift.astype(np.float32)
    else:
        piece = target.mean((1, 2), keepdims=True) + rng.normal(0, 0.3, target.shape).astype(np.float32)
    changed = np.abs(piece - target).mean(0) > 0.1
    target[:] = np.where(ellipse, piece, target)
    mask[top : top + h, left : left + w] = np.maximum(mask[top : top + h, left : left + w], ellipse & changed)
