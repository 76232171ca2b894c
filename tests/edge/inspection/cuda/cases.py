"""The CUDA runtime on the emulated device beside the portable one: what both make of the same frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.bundle import Bundle
from edge.frames import F32, U8, Area, FrameMeta, PixelFormat, Slot
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.portable import PortableRuntime
from edge.inspection.runtime import Runtime
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.network import NetworkEngine
from tests.tiny_bundle import FRAME_HEIGHT, FRAME_WIDTH, TinyProduct

FRAME_BYTES = FRAME_HEIGHT * FRAME_WIDTH * 3
THRESHOLD = 0.1
PRODUCT = TinyProduct()


@dataclass(frozen=True)
class Found:
    """All that an inspection leaves behind."""

    score: float
    peak: float
    prompt: int
    area: Area | None
    anomaly_map: F32
    mask: U8

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Found)
            and (self.score, self.peak, self.prompt, self.area) == (other.score, other.peak, other.prompt, other.area)
            and np.array_equal(self.anomaly_map, other.anomaly_map)
            and np.array_equal(self.mask, other.mask)
        )

    __hash__ = None  # type: ignore[assignment]


def place(slot: Slot, image: U8, pixel_format: PixelFormat = PixelFormat.BGR8) -> Slot:
    """Do what a camera does."""
    height, width = pixel_format.size(image.shape)
    slot.shape_pixels(height, width, pixel_format)[...] = image
    slot.meta = FrameMeta(source="test")
    return slot


def found(runtime: Runtime, slot: Slot, threshold: float = THRESHOLD) -> Found:
    """Inspect what lies in the slot."""
    outcome = runtime.run(slot, threshold)
    return Found(outcome.score, outcome.peak, outcome.prompt, slot.area, slot.anomaly_map.copy(), slot.mask.copy())


class Reference:
    """What the portable runtime finds, frame by frame."""

    def __init__(self, path: Path, corrections: Corrections = NOTHING) -> None:
        with Bundle.open(path) as bundle:
            self._runtime = PortableRuntime(bundle, threads=1, corrections=corrections)
            (self._slot,) = self._runtime.make_slots(1, 0)

    def __call__(self, image: U8, pixel_format: PixelFormat = PixelFormat.BGR8, threshold: float = THRESHOLD) -> Found:
        return found(self._runtime, place(self._slot, image, pixel_format), threshold)


@contextmanager
def emulated(
    path: Path,
    gpu: EmulatedGpu,
    *,
    corrections: Corrections = NOTHING,
    prompt_bytes: int | None = None,
    timed: bool = False,
) -> Iterator[CudaRuntime]:
    """A CUDA runtime on an emulated device, which is asked at the end what went wrong unseen."""
    with Bundle.open(path) as bundle:
        runtime = CudaRuntime(
            bundle,
            corrections=corrections,
            gpu=gpu,
            engine=NetworkEngine(bundle, gpu),
            prompt_bytes=prompt_bytes,
            timed=timed,
        )
        yield runtime
        runtime.close()
        gpu.close()
