"""The training images as the station will see them: `X`, `H` and the descriptor, from the station's own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge.cli import progress
from edge.errors import DataError
from edge.files import utf8_text
from edge.frames import F32, U8, PixelFormat
from edge.images import pixel_digest
from edge.inspection.native import Preprocessor
from edge.manifest import ONE_TILE, CanvasSpec, InputSpec, MapSpec
from train.datasets import Sample, load_images
from train.redi.maps import make_map


@dataclass
class PreparedImages:
    """Every readable image, prepared once.  A row is one tile: `tiles` rows in a row are one image.

    `x` is float16 `(N, 3, H, W)` (half the memory, and finer than the 8 bits it came from), `h` float32
    `(N, map channels, rows, columns)`, `descriptors` float32 `(N, D)`; of the images, `names` are the files in order,
    `digests` those of their pixels.  All of it stays in main memory; batches are handed out on `device`.

    `blocks` says what the rows are: first every image as it is (`""`), then maybe copies of them all in the same order
    (`train.variants`), `turned` or `altered`; the `H` of an altered row is not that of its `X`.
    """

    x: Tensor
    h: Tensor
    descriptors: F32
    names: list[str]
    digests: list[str]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tiles: int = 1
    blocks: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.descriptors)

    @property
    def origins(self) -> NDArray[np.int64]:
        """Which image each row is a tile of, `(N,)`."""
        return np.arange(len(self)) % self.originals // self.tiles

    @property
    def plain(self) -> NDArray[np.int64]:
        """The rows whose `H` and `X` belong together, `(M,)`: those that may prompt."""
        whole = np.array([block != "altered" for block in self.blocks])
        return np.flatnonzero(whole[np.arange(len(self)) // self.originals])

    @property
    def originals(self) -> int:
        """How many rows are images as they are, the first of them; as many are in every block."""
        return len(self) // len(self.blocks)

    def row_name(self, row: int) -> str:
        """Return the file's name, and where it has several tiles, which one this is."""
        block, place = divmod(int(row), self.originals)
        image, tile = divmod(place, self.tiles)
        name = self.names[image] if self.tiles == 1 else f"{self.names[image]}#{tile}"
        return f"{name} ({self.blocks[block]})" if self.blocks[block] else name

    def images(self, indices: NDArray[np.int64]) -> Tensor:
        """Return `X` of these rows on `device`, float32, channels last."""
        rows = self.x[torch.from_numpy(indices)].to(self.device)
        return rows.float().contiguous(memory_format=torch.channels_last)

    def maps(self, indices: NDArray[np.int64]) -> Tensor:
        """Return `H` of these rows on `device`."""
        return self.h[torch.from_numpy(indices)].to(self.device)


class Preparer:
    """Turns one tile of an image into `(X, H, descriptor)`; the arrays are reused, so copy what is kept."""

    def __init__(self, input_spec: InputSpec, map_spec: MapSpec, canvas: CanvasSpec = ONE_TILE) -> None:
        self._kernels = Preprocessor(input_spec, map_spec, canvas)
        self.canvas = self._kernels.canvas
        self._map = make_map(input_spec, map_spec)
        self.x = np.zeros((3, input_spec.height, input_spec.width), np.float32)
        self._hog = self.h = np.zeros(self._kernels.map_shape, np.float32)
        self.descriptor = np.zeros(self._kernels.descriptor_size, np.float32)

    def __call__(self, image: U8, tile: int = 0) -> None:
        """Prepare a tile of a BGR image `(H, W, 3)` of any size."""
        self._kernels(image, PixelFormat.BGR8, self.x, self._hog, self.descriptor, tile)
        if self._map is not None:
            self.h = self._map(torch.from_numpy(self.x)[None])[0].numpy()


def prepare(
    samples: Sequence[Sample],
    input_spec: InputSpec,
    map_spec: MapSpec,
    device: torch.device,
    canvas: CanvasSpec = ONE_TILE,
    *,
    fewest: int = 2,
) -> PreparedImages:
    """Read and prepare `samples`, to be used on `device`; unreadable ones are named, counted and left out.

    Raises:
        DataError: fewer than `fewest` images are readable.
    """
    preparer = Preparer(input_spec, map_spec, canvas)
    # Made at once: a list of tiles and their stack would hold everything twice.
    x = torch.empty(len(samples) * canvas.tiles, *preparer.x.shape, dtype=torch.float16)
    h: list[F32] = []
    descriptors: list[F32] = []
    names: list[str] = []
    digests: list[str] = []
    with progress(transient=True) as bar:
        task = bar.add_task("reading images", total=len(samples), note="")
        for sample, image in load_images(samples):
            for tile in range(canvas.tiles):
                preparer(image, tile)
                x[len(descriptors)] = torch.from_numpy(preparer.x)
                h.append(preparer.h.copy())
                descriptors.append(preparer.descriptor.copy())
            names.append(utf8_text(sample.path.name))
            digests.append(pixel_digest(image))
            bar.advance(task)
    if len(names) < fewest:
        raise DataError(
            f"{len(names)} readable training image: one alone does not show what is common to good parts",
            "photograph more good parts: 50 make a useful model, 200 a good one",
        )
    return PreparedImages(
        x[: len(descriptors)],
        torch.from_numpy(np.stack(h)),
        np.stack(descriptors),
        names,
        digests,
        device,
        canvas.tiles,
    )
