"""Time the CUDA runtime: its kernels against the device's copying speed and PyTorch, a whole frame against the core.

    python -m tests.benchmarks.gpu.bench_cuda [--json] [--side 2048] [--repeats 30]

Needs a GPU, PyTorch and PyCUDA, and no network.  Kernels are timed by the device's clock on inputs that fill the chip,
many in one graph; a step's bytes are those that it cannot do without: each input read once, each output written once,
and nothing of what its kernels hand to each other.  Their share of the bandwidth is against a copy on the device in the
same run, which reads and writes.  A frame is timed by the host's clock to its results, beside the core alone: once from
when it lies on the device, as frames do that come while another is inspected, and once with its copy to the device.
PyTorch stands in TensorRT's place, in float16, with a network of the size of two ResNet-18.  HOG is also timed as
OpenCV and CuPy have it, where they are installed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge.bundle import Bundle, write_bundle
from edge.frames import FrameMeta, PixelFormat
from edge.gpu_clock import gpu_clock
from edge.inspection.cuda.device import DeviceMemory, Gpu, Stream
from edge.inspection.cuda.engine import Engine
from edge.inspection.cuda.plan import FrameTables, Plan, Results
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.cuda.seat import Seat
from edge.inspection.native import Preprocessor
from edge.inspection.ports import core_inputs, core_outputs
from edge.manifest import CompareSpec, CoreSpec, Golden, InputSpec, MapSpec, ModelSpec

#: Shares of the copy bandwidth that are meant to be reached, and the most that a frame may take over its core.
TARGETS = {"prepare": 0.6, "hog": 0.6, "compare": 0.7}
MOST_OVER_CORE = 1.15
ENTRIES = 64
_COPY_BYTES = 512 << 20


def model(side: int) -> ModelSpec:
    """Return a model of the usual shape for an input of `side` x `side` pixels.

    Its features are compared whole, as CKAAD's are, and ReDi's without statistics: with them there is far less to read.
    """
    scales = tuple((64 << level, side >> level + 2, side >> level + 2) for level in range(3))
    features: dict[str, tuple[int, ...]] = {f"level{level}": scale for level, scale in enumerate(scales)}
    return ModelSpec(
        "redi",
        "resnet18",
        InputSpec(height=side, width=side),
        MapSpec(),
        CompareSpec(scales=scales),
        CoreSpec(precision="fp16", prompt_features=features),
    )


def needed_bytes(spec: ModelSpec, frame_bytes: int) -> dict[str, int]:
    """Return what each step has to read and write at least, in bytes."""
    height, width = spec.input.height, spec.input.width
    cells = spec.map.orientations * (height // spec.map.cell) * (width // spec.map.cell)
    pooled = cells // spec.map.descriptor_pool**2
    features = sum(math.prod(scale) for scale in spec.compare.scales)
    prompts = sum(math.prod(shape) for shape in spec.core.prompt_features.values())
    return {
        # Frame → X and grey.
        "prepare": frame_bytes + 4 * (3 + 1) * height * width,
        # Grey → H.
        "hog": 4 * height * width + 4 * cells,
        # H and all descriptors → one index.
        "choose": 4 * cells + 4 * ENTRIES * pooled,
        # float16 → float32.
        "gather": (2 + 4) * prompts,
        # F_X and F_Y → map and mask.
        "compare": 2 * 4 * features + 4 * height * width + height * width // 8,
    }


class Steps:
    """Each step of a frame on the device, to be queued alone.

    Args:
        gpu: the device.
        spec: the model.
        frame: its height and width in pixels; it is BGR.
        stream: on which they are queued.
    """

    def __init__(self, gpu: Gpu, spec: ModelSpec, frame: tuple[int, int], stream: Stream) -> None:
        self.gpu, self.spec, self.stream = gpu, spec, stream
        self._plan = Plan(gpu, spec, ENTRIES, stream)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (*frame, 3), np.uint8)
        self.frame_bytes = pixels.nbytes
        native = Preprocessor(spec.input, spec.map)
        self._tables: FrameTables = self._plan.place(native.tables(pixels, PixelFormat.BGR8), None)
        self._pixels = self._filled(pixels)
        self._descriptors = self._filled(rng.random((ENTRIES, native.descriptor_size), np.float32))
        for level, scale in enumerate(spec.compare.scales):
            for side in ("fx", "fy"):
                self._fill(self._plan.ports[f"{side}_{level}"].address, rng.standard_normal(scale, np.float32))
        size = sum(math.prod(shape) for shape in spec.core.prompt_features.values())
        self._entry = self._filled(rng.standard_normal(size).astype(np.float16))
        self._table = self._filled(np.array([self._entry.address], np.uint64))
        self._prompt = gpu.allocate(4 * size)
        self._size = size
        self._map = gpu.allocate(4 * spec.input.height * spec.input.width)
        self._mask = gpu.allocate(spec.input.height * spec.input.width // 8)
        self._words = gpu.allocate(16)
        self._best = gpu.allocate(4)

    def work(self) -> dict[str, Callable[[], None]]:
        """Return each step by name."""
        spec, plan = self.spec, self._plan
        words = (self._words.address + 4 * word for word in range(4))
        results = Results(self._map.address, self._mask.address, *words)
        return {
            "prepare": lambda: plan.prepare(self._tables, 0, self._pixels.address, self.frame_bytes // self._rows),
            "hog": plan.hog,
            "choose": lambda: plan.choose(self._descriptors.address, self._best.address),
            # The table has one entry, and so the index is that of memory that is never written: 0.
            "gather": lambda: plan.gather(
                self._table.address, self._words.address + 12, self._size, self._prompt.address
            ),
            "compare": lambda: plan.compare(0, self._tables.area, spec.compare.sigma, results),
        }

    @property
    def _rows(self) -> int:
        return int(self._tables.tiles[0].frame.height)

    def _filled(self, values: NDArray[np.generic]) -> DeviceMemory:
        memory = self.gpu.allocate(values.nbytes)
        self._fill(memory.address, values)
        return memory

    def _fill(self, address: int, values: NDArray[np.generic]) -> None:
        staging = self.gpu.pin(values.nbytes)
        staging.array[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.gpu.copy_in(address, staging.address, values.nbytes, self.stream)
        self.stream.synchronize()


def device_ms(gpu: Gpu, stream: Stream, work: Callable[[], None], repeats: int, inside: int = 10) -> float:
    """Return the device's median time for one `work`, of which `inside` are in one graph."""

    def many() -> None:
        for _ in range(inside):
            work()

    graph = gpu.record(stream, many)
    begun, ended = gpu.event(timing=True), gpu.event(timing=True)
    times = []
    for _ in range(repeats + 2):
        begun.record(stream)
        graph.launch(stream)
        ended.record(stream)
        ended.synchronize()
        times.append(ended.elapsed_ms(begun) / inside)
    return median(times[2:])


def copy_bytes_per_s(gpu: Gpu, stream: Stream, repeats: int, size: int = _COPY_BYTES) -> float:
    """Return how many bytes a copy on the device reads and writes per second."""
    source, target = gpu.allocate(size), gpu.allocate(size)
    ms = device_ms(gpu, stream, lambda: gpu.copy_within(target.address, source.address, size, stream), repeats, 4)
    return 2 * size / (ms / 1e3)


@dataclass(frozen=True)
class Row:
    """One step: its time, the bytes that it needs, and their rate as a share of the copying one."""

    step: str
    ms: float
    bytes: int
    share: float

    @property
    def reached(self) -> bool | None:
        """Whether the step's target is reached; None where it has none."""
        target = TARGETS.get(self.step)
        return None if target is None else self.share >= target


def kernel_rows(
    gpu: Gpu, spec: ModelSpec, frame: tuple[int, int], repeats: int, copy_size: int = _COPY_BYTES
) -> Iterator[Row]:
    """Yield every step of a frame."""
    stream = gpu.stream()
    bandwidth = copy_bytes_per_s(gpu, stream, repeats, copy_size)
    yield Row("copy", 2e3 * copy_size / bandwidth, 2 * copy_size, 1.0)
    steps = Steps(gpu, spec, frame, stream)
    needed = needed_bytes(spec, steps.frame_bytes)
    for name, work in steps.work().items():
        ms = device_ms(gpu, stream, work, repeats)
        yield Row(name, ms, needed[name], needed[name] / (ms / 1e3) / bandwidth)


def frame_over_core(gpu: Gpu, repeats: int) -> dict[str, float]:
    """Return the latencies of a frame at 256 x 256, medians in ms: whole, with its copy, and its core's alone."""
    from tests.benchmarks.gpu.torch_steps import make_core
    from tests.gpu.torch_core import TorchEngine

    spec = model(256)
    with TemporaryDirectory() as folder, Bundle.open(write_model(Path(folder, "redi.plan"), spec)) as bundle:
        engine = TorchEngine(make_core(spec), core_inputs(spec), core_outputs(spec))
        runtime = CudaRuntime(bundle, gpu=gpu, engine=engine)
        figures = time_frames(gpu, runtime, engine, 10 * repeats)
        runtime.close()
    return figures


def time_frames(gpu: Gpu, runtime: CudaRuntime, engine: Engine, frames: int) -> dict[str, float]:
    """Time frames of 1080 x 1080 pixels; see `frame_over_core`."""
    (slot,) = runtime.make_slots(1, 0)
    rng = np.random.default_rng(0)
    slot.shape_pixels(1080, 1080, PixelFormat.BGR8)[...] = rng.integers(0, 256, (1080, 1080, 3), np.uint8)
    runtime.run(slot, 1.0)
    seat = slot.seat
    assert isinstance(seat, Seat)
    stream, done = gpu.stream(), gpu.event()
    # What a library keeps for each stream is there before it is recorded.
    engine.enqueue(stream)
    stream.synchronize()
    graph = gpu.record(stream, lambda: engine.enqueue(stream))
    times: dict[str, list[float]] = {"whole_ms": [], "with_copy_ms": [], "core_ms": []}
    for _ in range(frames):
        slot.meta = FrameMeta()
        runtime.stage(slot)
        seat.uploaded.synchronize()
        marks = [time.perf_counter()]
        runtime.run(slot, 1.0)
        marks.append(time.perf_counter())
        runtime.run(slot, 1.0)
        marks.append(time.perf_counter())
        graph.launch(stream)
        done.record(stream)
        done.synchronize()
        marks.append(time.perf_counter())
        for values, begun, ended in zip(times.values(), marks[:-1], marks[1:], strict=True):
            values.append(1e3 * (ended - begun))
    figures = {name: median(values[frames // 10 :]) for name, values in times.items()}
    return {**figures, "over_core": figures["whole_ms"] / figures["core_ms"]}


def write_model(path: Path, spec: ModelSpec) -> Path:
    """Write a bundle of this model with random prompts, and without a network that anything could run."""
    rng = np.random.default_rng(1)
    pooled = spec.map.descriptor_pool * spec.map.cell
    size = spec.map.orientations * (spec.input.height // pooled) * (spec.input.width // pooled)
    descriptors = rng.random((ENTRIES, size), np.float32)
    members: dict[str, Any] = {
        "core.onnx": b"the benchmark brings its own",
        "prompts/names.json": msgspec.json.encode([f"{entry}.png" for entry in range(ENTRIES)]),
        "prompts/descriptors.npy": descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        "golden.json": msgspec.json.encode(Golden(0.01, ())),
    }
    for name, shape in spec.core.prompt_features.items():
        members[f"prompts/{name}.npy"] = rng.standard_normal((ENTRIES, *shape), np.float32).astype(np.float16)
    write_bundle(path, model=spec, members=members, provenance={"purpose": "benchmark"})
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print tables, or one JSON object; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--side", type=int, default=2048, help="side of the input that fills the chip (default 2048)")
    parser.add_argument("--repeats", type=int, default=30, help="timed graphs for each figure (default 30)")
    options = parser.parse_args(argv)
    from edge.inspection.cuda.pycuda_device import own_gpu
    from tests.benchmarks.gpu.other_hogs import other_hogs_ms
    from tests.benchmarks.gpu.torch_steps import torch_rows

    gpu = own_gpu()
    frame = (2 * options.side, 2 * options.side)
    rows = list(kernel_rows(gpu, model(options.side), frame, options.repeats))
    torch_ms = torch_rows(model(options.side), frame, options.repeats)
    hogs_ms = other_hogs_ms(options.side, options.repeats)
    latency = frame_over_core(gpu, options.repeats)
    missed = [row.step for row in rows if row.reached is False]
    missed += ["over_core"] if latency["over_core"] > MOST_OVER_CORE else []
    if options.json:
        kernels = [
            {"step": row.step, "ms": row.ms, "bytes": row.bytes, "share": row.share, "torch_ms": torch_ms.get(row.step)}
            for row in rows
        ]
        facts = {"device": gpu.facts.name, "date": datetime.now(timezone.utc).date().isoformat()}
        settings = {"clocks": gpu_clock().as_dict(), "side": options.side}
        print(
            json.dumps({**facts, **settings, "kernels": kernels, "other_hogs_ms": hogs_ms, **latency, "missed": missed})
        )
    else:
        _show(gpu, rows, torch_ms, latency, options.side)
        for name, ms in hogs_ms.items():
            Console().print(f"HOG by {name}: {ms:.3f} ms")
    return 1 if missed else 0


def _show(gpu: Gpu, rows: Sequence[Row], torch_ms: dict[str, float], latency: dict[str, float], side: int) -> None:
    out = Console()
    table = Table(title=f"{gpu.facts.name}, {gpu_clock().describe}; input {side} x {side}")
    for heading in ("step", "ms", "GB/s", "of a copy", "target", "PyTorch ms"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for row in rows:
        target = TARGETS.get(row.step)
        wanted = "" if target is None else f"{target:.0%} {'reached' if row.reached else 'missed'}"
        other = torch_ms.get(row.step)
        speed = f"{row.bytes / row.ms / 1e6:.0f}"
        table.add_row(
            row.step, f"{row.ms:.3f}", speed, f"{row.share:.0%}", wanted, "" if other is None else f"{other:.3f}"
        )
    out.print(table)
    out.print(
        f"a frame of 1080 x 1080 at 256 x 256: {latency['whole_ms']:.3f} ms, its core {latency['core_ms']:.3f} ms, "
        f"{latency['over_core']:.2f} times that ({MOST_OVER_CORE} at most are meant); "
        f"with its copy to the device {latency['with_copy_ms']:.3f} ms"
    )


if __name__ == "__main__":
    raise SystemExit(main())
