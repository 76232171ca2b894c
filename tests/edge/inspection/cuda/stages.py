"""The kernels of one model on the emulated device, stage by stage, for comparison with the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.frames import F32, U8, Area, PixelFormat, Roi
from edge.inspection import native
from edge.inspection.compare import Comparison
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.cuda.plan import Plan, Results
from edge.manifest import ONE_TILE, CanvasSpec, CompareSpec, CoreSpec, InputSpec, Lens, MapSpec, ModelSpec
from tests.edge.inspection.cuda.emulated import EmulatedGpu

SCALES = ((8, 16, 24), (6, 8, 12))


def model_of(
    inputs: InputSpec,
    maps: MapSpec | None = None,
    compare: CompareSpec | None = None,
    canvas: CanvasSpec = ONE_TILE,
) -> ModelSpec:
    """Return a model of these parts, whose core takes the map and no prompt."""
    core = CoreSpec(uses_prompt=False)
    return ModelSpec("test", "test", inputs, maps or MapSpec(), compare or CompareSpec(scales=SCALES), core, canvas)


class Stages:
    """One model's kernels; every call queues one stage, waits for it and returns what it left on the device."""

    def __init__(self, gpu: EmulatedGpu, model: ModelSpec, bank: F32 | None = None) -> None:
        self._gpu, self._model = gpu, model
        self._stream = gpu.stream()
        self._bank = np.ones((1, 1), np.float32) if bank is None else bank
        self.plan = Plan(gpu, model, len(self._bank), self._stream)
        height, width = self.plan.map_shape
        self._memory = [gpu.allocate(size) for size in (4 * height * width, height * width // 8, 4, 4, 4, 4)]
        self._results = Results(*(memory.address for memory in self._memory))
        self._native = native.Preprocessor(model.input, model.map, model.canvas)

    def prepare(
        self, pixels: U8, kind: PixelFormat, corrections: Corrections = NOTHING, tile: int = 0
    ) -> tuple[F32, F32]:
        """Return the network's input and the grey plane of a frame, whose rows may lie apart."""
        preprocessor = native.Preprocessor(
            self._model.input, self._model.map, self._model.canvas, corrections=corrections
        )
        tables = self.plan.place(preprocessor.tables(pixels, kind), corrections.flat_field)
        stride = pixels.strides[0]
        # Not a byte more than the frame has, so that reading past its end is found.
        size = (pixels.shape[0] - 1) * stride + pixels[0].nbytes
        flat = np.lib.stride_tricks.as_strided(pixels, (size,), (1,))
        frame = self._gpu.allocate(size)
        self._gpu.write(frame.address, flat)
        self.plan.prepare(tables, tile, frame.address, stride)
        self._stream.synchronize()
        height, width = self._model.input.height, self._model.input.width
        x = self._gpu.read(self.plan.ports["x"].address, np.float32, (3, height, width))
        return x, self._gpu.read(self.plan._grey, np.float32, (height, width))

    def hog(self, grey: F32) -> tuple[F32, F32]:
        """Return the cell means and the map of a grey plane."""
        self._gpu.write(self.plan._grey, grey)
        self.plan.hog()
        self._stream.synchronize()
        shape = self._native.map_shape
        cells = self._gpu.read(self.plan._hog.cells, np.float32, shape)
        return cells, self._gpu.read(self.plan._h.address, np.float32, shape)

    def choose(self, h: F32) -> tuple[F32, int]:
        """Return the descriptor of a map, and which entry of the bank is the nearest."""
        self._gpu.write(self.plan._h.address, h)
        bank = self._gpu.allocate(self._bank.nbytes)
        self._gpu.write(bank.address, self._bank)
        self.plan.choose(bank.address, self._results.prompts)
        self._stream.synchronize()
        descriptor = self._gpu.read(self.plan._descriptor.address, np.float32, (self._native.descriptor_size,))
        return descriptor, int(self._gpu.read(self._results.prompts, np.int32, (1,))[0])

    def compare(
        self, tiles: Sequence[tuple[list[F32], list[F32]]], threshold: float, area: Area | None = None
    ) -> tuple[Comparison, F32, U8]:
        """Return image score, map and mask of the features of all tiles."""
        height, width = self.plan.map_shape
        for tile, (fx, fy) in enumerate(tiles):
            for side, maps in (("fx", fx), ("fy", fy)):
                for level, features in enumerate(maps):
                    self._gpu.write(self.plan.ports[f"{side}_{level}"].address, features)
            self.plan.compare(tile, area or Area(0, 0, height, width), threshold, self._results)
            self._stream.synchronize()
        anomaly_map: NDArray[np.float32] = self._gpu.read(self._results.map, np.float32, (height, width))
        mask = self._gpu.read(self._results.mask, np.uint8, (height, width // 8))
        score, peak = (
            float(self._gpu.read(at, np.float32, (1,))[0]) for at in (self._results.score, self._results.peak)
        )
        flagged = int(self._gpu.read(self._results.flagged, np.int32, (1,))[0])
        return Comparison(score, peak, flagged), anomaly_map, mask


def run_all(gpu: EmulatedGpu, sources: Sequence[str]) -> list[object]:
    """Return what the kernels of these files, and of each of their branches, make of a few small frames."""
    rng = np.random.default_rng(7)
    maps = MapSpec(orientations=5, cell=4)
    # More than one round of the lanes, and all alike.
    bank = np.ones((70, 5 * 4 * 12), np.float32)
    scales = ((5, 8, 40), (3, 4, 6))
    gains = rng.integers(3000, 5000, (90, 130), dtype=np.uint16)
    found: list[object] = []
    for k in (40, 3000):  # of 96 groups of map values: fewer, and more
        compare = CompareSpec(scales=scales, sigma=2.0, top_k=k)
        stages = Stages(gpu, model_of(InputSpec(height=32, width=96), maps, compare), bank)
        if "prepare" in sources:
            for kind, shape in ((PixelFormat.BGR8, (90, 130, 3)), (PixelFormat.BAYER_RGGB, (90, 130))):
                found += stages.prepare(rng.integers(0, 256, shape, dtype=np.uint8), kind)
            nv12 = rng.integers(0, 256, (135, 130), dtype=np.uint8)
            found += stages.prepare(nv12, PixelFormat.NV12, Corrections(flat_field=gains))
            lens = Lens(90.0, 95.0, 60.0, 40.0, -0.2, 0.05)
            found += stages.prepare(nv12, PixelFormat.NV12, Corrections(Roi(9, 5, 111, 70), gains, lens))
        if "hog" in sources:
            found += stages.hog(rng.random((32, 96), dtype=np.float32))
        if "nearest" in sources:
            found += stages.choose(rng.random((5, 8, 24), dtype=np.float32))
        if "compare" in sources:
            fx, fy = ([rng.standard_normal(scale, dtype=np.float32) for scale in scales] for _ in range(2))
            found += stages.compare([(fx, fy)], 0.8)
            fx[1][0, 2, 3] = np.nan
            found += stages.compare([(fx, fy)], 0.8)[1:]
    return found
