"""Time the station, camera to event, and the same work written with well-known libraries, in one run.

    python tests/benchmarks/bench_station.py [--engine redi.plan] [--frames N] [--threads N] [--json]

The station runs as `edge-run` runs it: capture, inspection and publishing overlap, a subscriber reads every event over
TCP.  Frames come from memory, as a camera's DMA would deliver them, so that no decoder is timed.  Without --engine, a
model of the small size with random weights is exported first: it computes as much as a trained one.

`not core` is the share of the inspection (before + core + after) that is not the network.  The alternative runs the
same network in the same engine with the same threads, and does *before* and *after* with OpenCV, scikit-image and
NumPy; its prompt is fixed, and its map is close to the station's but not equal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
from rich.console import Console
from rich.table import Table
from skimage.feature import hog

from edge.bench import WARM_UP, simulated_frames, time_station
from edge.bundle import CORE, Bundle
from edge.frames import U8
from edge.inspection.portable import core_settings
from edge.machine import physical_cores


def figures(values: Sequence[float]) -> dict[str, float]:
    """Return median, interquartile range, p95 and p99."""
    low, median, high, p95, p99 = np.percentile(values, [25, 50, 75, 95, 99])
    named = {"median": median, "iqr": high - low, "p95": p95, "p99": p99}
    return {name: round(float(value), 3) for name, value in named.items()}


def station_figures(bundle: Bundle, frames: Sequence[U8], count: int, threads: int) -> dict[str, Any]:
    """Run the station over `count` frames after a warm-up and return its stages in milliseconds."""
    timing = time_station(bundle, frames, count, threads=threads)
    return {
        "what": timing.runtime,
        "frames_per_s": round(timing.frames_per_s, 2),
        "not_core": round(timing.not_core, 4),
        "ms": {stage: figures(values) for stage, values in timing.stages.items()}
        | {"inspection": figures(timing.total), "frame period": figures(timing.periods)},
    }


def time_libraries(bundle: Bundle, frames: Sequence[U8], count: int, threads: int) -> dict[str, Any]:
    """Do the same with OpenCV, scikit-image, NumPy and OpenVINO's plain call, one frame after the other."""
    spec = bundle.manifest.model
    side = (spec.input.width, spec.input.height)
    mean, std = np.array(spec.input.mean, np.float32), np.array(spec.input.std, np.float32)
    core = ov.Core()
    compiled = core.compile_model(core.read_model(bytes(bundle.read(CORE))), "CPU", core_settings(threads, "f32"))
    prompt = {f"prompt_{n}": bundle.array(f"prompts/{n}.npy")[:1].astype(np.float32) for n in spec.core.prompt_features}
    cells = spec.map.cell
    stages: dict[str, list[float]] = {"before": [], "core": [], "after": []}
    for number in range(count + WARM_UP):
        marks = [time.perf_counter()]
        small = cv2.resize(frames[number % len(frames)], side, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) / 255.0
        x = np.ascontiguousarray(((small[..., ::-1] * np.float32(1 / 255) - mean) / std).transpose(2, 0, 1))[None]
        blocks = hog(grey, spec.map.orientations, (cells, cells), (2, 2), "L2-Hys", feature_vector=False)
        h = np.zeros((1, spec.map.orientations, side[1] // cells, side[0] // cells), np.float32)
        h[0, :, :-1, :-1] = blocks[:, :, 0, 0].transpose(2, 0, 1)
        marks.append(time.perf_counter())
        result = compiled({"x": x, "h": h, **prompt})
        marks.append(time.perf_counter())
        total = np.zeros((side[1], side[0]), np.float32)
        for level in range(len(spec.compare.scales)):
            a, b = result[f"fx_{level}"][0], result[f"fy_{level}"][0]
            norms = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
            total += cv2.resize(1 - (a * b).sum(axis=0) / (norms + 1e-12), side)
        smooth = cv2.GaussianBlur(total, (33, 33), spec.compare.sigma, borderType=cv2.BORDER_REFLECT)
        np.partition(smooth, -spec.compare.top_k, axis=None)[-spec.compare.top_k :].mean()
        np.packbits(smooth > 0.5, axis=1)
        marks.append(time.perf_counter())
        for stage, begin, end in zip(stages, marks, marks[1:], strict=False):
            stages[stage].append((end - begin) * 1e3)
    timed = {stage: np.asarray(values[WARM_UP:]) for stage, values in stages.items()}
    whole = timed["before"] + timed["core"] + timed["after"]
    return {
        "what": f"OpenCV + scikit-image + NumPy around the same OpenVINO network, {threads} threads",
        "frames_per_s": round(1e3 / float(np.median(whole)), 2),
        "not_core": round(1 - float(np.median(timed["core"] / whole)), 4),
        "ms": {stage: figures(values) for stage, values in timed.items()} | {"inspection": figures(whole)},
    }


def random_bundle(folder: Path) -> Path:
    """Export the small size with random weights."""
    import msgspec
    import torch

    from edge.bundle import write_bundle
    from edge.manifest import Golden
    from train.backbones import ResNet18
    from train.config import TrainConfig
    from train.export.graph import export_graph, fused
    from train.redi.method import build

    torch.manual_seed(0)
    # With all that a usual training gives it, though untaught: a core that leaves out parts would be faster.
    model = build(TrainConfig(data=""), ResNet18()).eval()
    spec = model.spec()
    rng = np.random.default_rng(0)
    descriptors = rng.random((32, 9 * 16 * 16), dtype=np.float32)
    members: dict[str, Any] = {
        CORE: export_graph(fused(model), spec),
        "golden.json": msgspec.json.encode(Golden(0.01, ())),
        "prompts/descriptors.npy": descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        "prompts/names.json": msgspec.json.encode([f"random {n}" for n in range(32)]),
    }
    for name, shape in spec.core.prompt_features.items():
        members[f"prompts/{name}.npy"] = rng.standard_normal((32, *shape), dtype=np.float32)
    write_bundle(folder / "bench.plan", model=spec, members=members, provenance={"weights": "random"})
    return folder / "bench.plan"


def main(argv: Sequence[str] | None = None) -> int:
    """Run both and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, help="a bundle; default: the small size with random weights")
    parser.add_argument("--frames", type=int, default=100, help="timed frames for each (100)")
    parser.add_argument("--threads", type=int, help="threads of the network (the runtime's choice)")
    parser.add_argument("--side", type=int, default=640, help="side of the square camera frame (640)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    frames = simulated_frames(options.side)
    threads = options.threads or physical_cores()
    with (
        tempfile.TemporaryDirectory() as folder,
        Bundle.open(options.engine or random_bundle(Path(folder))) as bundle,
    ):
        results = [
            station_figures(bundle, frames, options.frames, threads),
            time_libraries(bundle, frames, options.frames, threads),
        ]
    if options.json:
        print(json.dumps(results))
        return 0
    for result in results:
        table = Table(
            title=result["what"], caption=f"{result['frames_per_s']} frames/s, not core {result['not_core']:.1%}"
        )
        for heading in ("stage, ms", "median", "IQR", "p95", "p99"):
            table.add_column(heading, justify="left" if "stage" in heading else "right")
        for stage, row in result["ms"].items():
            table.add_row(stage, *(f"{row[name]:.2f}" for name in ("median", "iqr", "p95", "p99")))
        Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
