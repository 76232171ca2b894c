"""More training rows from the good images: turned as far as the product allows, and altered.

*Turned*: where a mirrored or rotated part looks no stranger than another good part, it is one; a few photographs then
show many.  Which transforms that holds for is read from the good images themselves (`admissible`).

*Altered*: the map `H` is taken from an image with something pasted, scarred or toned, while `X` stays the good image.
Recovery thereby learns to give back what should be there, not what the map shows; without it a defect leaks through its
own map.  Altered rows teach, but never prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edge.cli import console, progress
from edge.frames import F32
from edge.inspection.native import Preprocessor
from edge.manifest import InputSpec, MapSpec
from train.backbones import Backbone
from train.featurecache import FEATURE_CACHE_BYTES
from train.prepared import PreparedImages
from train.redi.maps import make_map
from train.selftrain import alter

#: Transforms of `X`, by name; those that exchange height and width need square inputs.
TRANSFORMS = ("mirrored", "flipped", "rotated-180", "rotated-90", "rotated-270")
_SQUARE_ONLY = ("rotated-90", "rotated-270")

#: Copies of each image beside itself, where memory holds them: turned and altered in turn.
COPIES = 5

#: A transform is admissible where it brings an image at most this many times as far from the other good ones.
STRANGENESS = 1.2

#: Images that are looked at for that.
_LOOKED_AT = 48


def turn(x: F32, transform: str) -> F32:
    """Apply a transform of `TRANSFORMS`, or none (`""`), to images `(…, H, W)`; a view where possible."""
    if transform == "mirrored":
        return x[..., ::-1]
    if transform == "flipped":
        return x[..., ::-1, :]
    if transform.startswith("rotated-"):
        return np.rot90(x, int(transform.removeprefix("rotated-")) // 90, (-2, -1))
    return x


def admissible(images: PreparedImages, phi: Backbone) -> tuple[str, ...]:
    """Return the transforms under which these good images look like good images.

    Each of some images is compared with all others by its features: pooled to 8x8 places, the mean over places of
    1 - cosine.  A transform is admissible where the median distance to the others grows to at most `STRANGENESS` times
    what it is untransformed.  The median, as the nearest is often a second photograph of the same part.
    """
    square = images.x.shape[2] == images.x.shape[3]
    count = len(images)
    rows = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))
    known = torch.cat([_places(phi, images.images(part)) for part in np.array_split(np.arange(count), -(-count // 8))])
    own = torch.from_numpy(images.origins[rows][:, None] == images.origins[None])
    if bool(own.all()):
        return ()

    def strangeness(transform: str) -> float:
        usual = []
        for place, row in enumerate(rows):
            x = np.ascontiguousarray(turn(images.x[int(row)].float().numpy(), transform))
            distance = 1 - _places(phi, torch.from_numpy(x)[None].to(images.device))[0] @ known.T
            usual.append(float(distance[~own[place].to(distance.device)].median()))
        return float(np.median(usual))

    usual = strangeness("")
    candidates = [name for name in TRANSFORMS if square or name not in _SQUARE_ONLY]
    return tuple(name for name in candidates if strangeness(name) <= STRANGENESS * usual)


@torch.no_grad()
def _places(phi: Backbone, x: torch.Tensor) -> torch.Tensor:
    """Return layer 2 at 8x8 places, `(N, D)`: unit vectors, whose products are means of cosines over places."""
    layer = torch.nn.functional.adaptive_avg_pool2d(phi(x)[1], 8).float()
    unit = torch.nn.functional.normalize(layer, dim=1)
    return unit.flatten(1) / 8


def with_variants(
    images: PreparedImages,
    input_spec: InputSpec,
    map_spec: MapSpec,
    transforms: Sequence[str],
    altered: bool,
    seed: int,
) -> PreparedImages:
    """Return `images` followed by copies of all of them, each turned at random, every other one altered.

    Without transforms all copies are altered, and half as many.  There are as many copies as keep the features within
    what is cached in memory, at least one.  The same seed gives the same rows.
    """
    kinds = [altered and (place % 2 == 0 or not transforms) for place in range(COPIES)]
    if not transforms:
        kinds = kinds[: (COPIES + 1) // 2]
    if not any(kinds) and not transforms:
        return images
    held = max(1, FEATURE_CACHE_BYTES // _cached_bytes(input_spec) // len(images) - 1)
    kinds = kinds[:held]
    maker = _RowMaker(images, input_spec, map_spec)
    with progress(transient=True) as bar:
        task = bar.add_task("turning and altering", total=len(kinds) * len(images), note="")
        for copy, is_altered in enumerate(kinds):
            for row in range(len(images)):
                maker.add(row, transforms, is_altered, np.random.default_rng([seed, 5, copy, row]))
                bar.advance(task)
    return maker.result(tuple("altered" if kind else "turned" for kind in kinds))


def describe(transforms: Sequence[str], altered: bool) -> None:
    """Say on the console what the training rows are made of."""
    what = ", ".join(transforms) if transforms else "none looks like another good part"
    console.print(f"good images turned: {what}{'; altered copies teach recovery' if altered else ''}")


def _cached_bytes(size: InputSpec) -> int:
    """Return what one row's cached features take with ResNet-18, in fp16: three scales of `F_X` and of `R_Y`."""
    pixels = size.height * size.width
    return 2 * 2 * sum(channels * pixels // stride**2 for channels, stride in ((64, 4), (128, 8), (256, 16)))


class _RowMaker:
    def __init__(self, images: PreparedImages, input_spec: InputSpec, map_spec: MapSpec) -> None:
        self._images = images
        self._kernels = Preprocessor(input_spec, map_spec)
        self._map = make_map(input_spec, map_spec)
        self._mean = np.array(input_spec.mean, np.float32)[:, None, None]
        self._std = np.array(input_spec.std, np.float32)[:, None, None]
        luma = np.array([0.299, 0.587, 0.114], np.float32)
        self._luma = luma if input_spec.order == "rgb" else luma[::-1]
        self._x: list[NDArray[np.float16]] = []
        self._h: list[F32] = []
        self._descriptors: list[F32] = []

    def add(self, row: int, transforms: Sequence[str], altered: bool, rng: np.random.Generator) -> None:
        turned = str(rng.choice(["", *transforms])) if altered else str(rng.choice(list(transforms)))
        x = np.ascontiguousarray(turn(self._images.x[row].float().numpy(), turned))
        h, descriptor = self._describe(x)
        if altered:
            h, _ = self._describe(self._altered(x, rng))
        self._x.append(x.astype(np.float16))
        self._h.append(h)
        self._descriptors.append(descriptor)

    def _altered(self, x: F32, rng: np.random.Generator) -> F32:
        other: F32 = x.copy()
        marks = np.zeros(x.shape[1:], np.float32)
        for _ in range(int(rng.integers(1, 4))):
            alter(other, marks, rng)
        if rng.random() < 0.3:
            self._transplant(other, rng)
        return other

    def _transplant(self, x: F32, rng: np.random.Generator) -> None:
        """Put a larger piece of another good image somewhere: a thing out of place, or one that is missing."""
        height, width = x.shape[1:]
        h, w = int(rng.integers(8, height // 3)), int(rng.integers(8, width // 3))
        (top, left), (from_top, from_left) = (
            (int(rng.integers(0, height - h)), int(rng.integers(0, width - w))) for _ in range(2)
        )
        donor = self._images.x[int(rng.integers(0, len(self._images)))]
        piece = donor[:, from_top : from_top + h, from_left : from_left + w]
        x[:, top : top + h, left : left + w] = piece.float().numpy()

    def _describe(self, x: F32) -> tuple[F32, F32]:
        colours = x * self._std + self._mean
        self._kernels.grey[:] = np.clip(np.tensordot(self._luma, colours, 1), 0, 1)
        h = np.empty(self._kernels.map_shape, np.float32)
        descriptor = np.empty(self._kernels.descriptor_size, np.float32)
        self._kernels.describe(h, descriptor)
        if self._map is not None:
            return np.asarray(self._map(torch.from_numpy(x)[None])[0].numpy(), np.float32), descriptor
        return h, descriptor

    def result(self, blocks: tuple[str, ...]) -> PreparedImages:
        images = self._images
        return PreparedImages(
            torch.cat([images.x, torch.from_numpy(np.stack(self._x))]),
            torch.cat([images.h, torch.from_numpy(np.stack(self._h))]),
            np.concatenate([images.descriptors, np.stack(self._descriptors)]),
            images.names,
            images.digests,
            images.device,
            images.tiles,
            (*images.blocks, *blocks),
        )
