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
from edge.manifest import InputSpec, MapSpec
from train.datasets import Sample, load_images


@dataclass
class PreparedImages:
    """Every readable image, prepared once.

    `x` is float16 `(N, 3, H, W)` (half the memory, and finer than the 8 bits it came from), `h` float32
    `(N, map channels, rows, columns)`, `descriptors` float32 `(N, D)`, `names` the files in
    order, `digests` those of their pixels.  All of it stays in main memory; batches are handed out on `device`.
    """

    x: Tensor
    h: Tensor
    descriptors: F32
    names: list[str]
    digests: list[str]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> Tensor:
        """Return `X` of these rows on `device`, float32, channels last."""
        rows = self.x[torch.from_numpy(indices)].to(self.device)
        return rows.float().contiguous(memory_format=torch.channels_last)

    def maps(self, indices: NDArray[np.int64]) -> Tensor:
        """Return `H` of these rows on `device`."""
        return self.h[torch.from_numpy(indices)].to(self.device)


class Preparer:
    """Turns one image into `(X, H, descriptor)`; the arrays are reused, so copy what is kept."""

    def __init__(self, input_spec: InputSpec, map_spec: MapSpec) -> None:
        self._kernels = Preprocessor(input_spec, map_spec)
        self.x = np.zeros((3, input_spec.height, input_spec.width), np.float32)
        self.h = np.zeros(self._kernels.map_shape, np.float32)
        self.descriptor = np.zeros(self._kernels.descriptor_size, np.float32)

    def __call__(self, image: U8) -> None:
        """Prepare a BGR image `(H, W, 3)` of any size."""
        self._kernels(image, PixelFormat.BGR8, self.x, self.h, self.descriptor)


def prepare(
    samples: Sequence[Sample], input_spec: InputSpec, map_spec: MapSpec, device: torch.device
) -> PreparedImages:
    """Read and prepare `samples`, to be used on `device`; unreadable ones are named, counted and left out.

    Raises:
        DataError: fewer than two images are readable.
    """
    preparer = Preparer(input_spec, map_spec)
    x: list[NDArray[np.float16]] = []
    h: list[F32] = []
    descriptors: list[F32] = []
    names: list[str] = []
    digests: list[str] = []
    with progress(transient=True) as bar:
        task = bar.add_task("reading images", total=len(samples), note="")
        for sample, image in load_images(samples):
            preparer(image)
            x.append(preparer.x.astype(np.float16))
            h.append(preparer.h.copy())
            descriptors.append(preparer.descriptor.copy())
            names.append(utf8_text(sample.path.name))
            digests.append(pixel_digest(image))
            bar.advance(task)
    if len(names) < 2:
        raise DataError(
            f"{len(names)} readable training image: recovery needs a second one as its prompt",
            "photograph more good parts: 50 make a useful model, 200 a good one",
        )
    return PreparedImages(
        torch.from_numpy(np.stack(x)), torch.from_numpy(np.stack(h)), np.stack(descriptors), names, digests, device
    )
