"""Latencies of ours and of the peers in OpenVINO: same precision, same threads, all in turn within one run.

The networks take turns: a round times a few frames of each, so that what else the machine does falls on all alike.
`network` is one inference; `whole` is frame to answer: ours as the station does it (native kernels, prompt choice,
comparison), a peer with OpenCV before its graph, which ends in the anomaly map and the image score.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
from numpy.typing import NDArray
from rich.progress import Progress

from edge.bench import simulated_frames
from edge.bundle import Bundle
from edge.cli import progress
from edge.frames import U8, FrameMeta, PixelFormat
from edge.inspection.inspector import Inspector
from edge.inspection.portable import core_settings
from edge.manifest import InputSpec
from tests.benchmarks.accuracy import peers

SIDE = 256
FRAME_SIDE = 640
#: Frames of one turn: the first ones bring the caches round, and are not counted.
WARM_UP, TIMED = 2, 5

OURS = "ReDi small (ours)"
UNIT = "ResNet-18 layers 1–3"

#: What the small size promises: whole-frame ratios to peers, and its network in passes of `UNIT`.
FASTER_THAN = {"EfficientAD-S": 6.0, "RD4AD WRN50": 4.0}
PASSES = 3.0

#: Takes a frame, returns the milliseconds of its network and of everything.
Run = Callable[[U8], tuple[float, float]]


@dataclass
class Contender:
    """One network with what was measured, in milliseconds."""

    name: str
    run: Run
    note: str
    network: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def run(out: Path, environment: Path, engine: Path | None, precisions: list[str], threads: int, rounds: int) -> str:
    """Measure in every precision that this CPU has; write `speed.md` and `speed.json` into `out`, return the former."""
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(threads)
    graphs = _graphs(out / "graphs", environment)
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    parts, results = [], []
    for precision in precisions:
        if precision == "bf16" and "BF16" not in capabilities:
            parts.append("bf16: this CPU has none, so that nothing was measured.\n")
            continue
        result = _measure(out / "graphs", graphs, engine, precision, threads, rounds)
        results.append(result)
        parts.append(render(result))
    text = "\n".join(parts)
    (out / "speed.md").write_text(text, encoding="utf-8")
    (out / "speed.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    return text


def _graphs(folder: Path, environment: Path) -> dict[str, dict[str, Any]]:
    """Return the peers' graphs, written now unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "result.json"
    result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {"error": "none yet"}
    if "error" in result:
        result = peers.call(environment, "export", folder)
    if "error" in result:
        return {"all peers": {"failures": {"export": result["error"]}}}
    return dict(result["graphs"])


def _measure(
    folder: Path, graphs: dict[str, dict[str, Any]], engine: Path | None, precision: str, threads: int, rounds: int
) -> dict[str, Any]:
    frames = simulated_frames(FRAME_SIDE)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = [_unit(precision, threads), _ours(stack, folder, engine, precision, threads)]
        for name, graph in graphs.items():
            reasons = "; ".join(f"{way}: {reason}" for way, reason in graph["failures"].items())
            if "file" not in graph:
                missing[name] = reasons
                continue
            try:
                contender = _peer(name, folder / graph["file"], graph["normalised"], precision, threads)
            except RuntimeError as error:
                missing[name] = f"OpenVINO: {str(error).strip().splitlines()[-1]}"
                continue
            contender.note = f"{graph['export']} ({reasons})" if reasons else graph["export"]
            contenders.append(contender)
        before = os.getloadavg()[0]
        with progress(transient=True) as bar:
            _take_turns(contenders, frames, rounds, bar)
        load = (before, os.getloadavg()[0])
    return {
        "precision": precision,
        "threads": threads,
        "rounds": rounds,
        "frames": rounds * TIMED,
        "cpu": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "openvino": ov.__version__.split("-")[0],
        "load": [round(value, 2) for value in load],
        "rows": {
            each.name: {"network": figures(each.network), "whole": figures(each.whole), "note": each.note}
            for each in contenders
        },
        "missing": missing,
    }


def _take_turns(contenders: list[Contender], frames: list[U8], rounds: int, bar: Progress) -> None:
    task = bar.add_task("timing", total=rounds * len(contenders), note="")
    for number in range(rounds):
        # Every other round runs backwards, so that nobody always follows the same neighbour.
        for each in contenders if number % 2 == 0 else contenders[::-1]:
            for turn in range(WARM_UP + TIMED):
                network, whole = each.run(frames[(number * TIMED + turn) % len(frames)])
                if turn >= WARM_UP:
                    each.network.append(network)
                    each.whole.append(whole)
            bar.update(task, advance=1, note=each.name)


def figures(values: list[float]) -> dict[str, float]:
    """Return the median and the interquartile range."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(median), 3), "iqr": round(float(high - low), 3)}


def _ours(stack: ExitStack, folder: Path, engine: Path | None, precision: str, threads: int) -> Contender:
    from tests.benchmarks.bench_station import random_bundle

    bundle = stack.enter_context(Bundle.open(engine or random_bundle(folder)))
    inspector = stack.enter_context(Inspector(bundle, uncalibrated=True, threads=threads, precision=precision))
    slot = inspector.make_slots(1, FRAME_SIDE * FRAME_SIDE * 3)[0]

    def inspect(frame: U8) -> tuple[float, float]:
        # Into the slot a camera writes by itself: that is not the inspection's time.
        slot.shape_pixels(FRAME_SIDE, FRAME_SIDE, PixelFormat.BGR8)[:] = frame
        slot.meta = FrameMeta()
        begin = time.perf_counter()
        found = inspector.inspect(slot)
        return found.latency_ms["core"], (time.perf_counter() - begin) * 1e3

    note = engine.name if engine else "exported bundle, random weights"
    return Contender(OURS, inspect, note)


def _unit(precision: str, threads: int) -> Contender:
    """Return one pass over the small size's backbone: what its cost is counted in."""
    import torch

    from train.backbones import ResNet18

    graph = ov.convert_model(ResNet18().eval(), example_input=torch.zeros(1, 3, SIDE, SIDE))
    contender = _peer(UNIT, graph, True, precision, threads)
    contender.note = "the unit: one pass"
    return contender


def _peer(name: str, graph: Any, normalised: bool, precision: str, threads: int) -> Contender:
    """Return a network, a file or OpenVINO's model, that takes RGB of `SIDE` x `SIDE`, `normalised` or from 0 to 1.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the graph.
    """
    core = ov.Core()
    network = core.read_model(graph) if isinstance(graph, Path) else graph
    # A batch that is left open would cost the peers the compiler's work on fixed shapes.
    network.reshape([1, 3, SIDE, SIDE])
    request = core.compile_model(network, "CPU", core_settings(threads, precision)).create_infer_request()
    spec = InputSpec()
    mean = np.array(spec.mean if normalised else (0, 0, 0), np.float32)
    factor = np.float32(spec.scale) / np.array(spec.std if normalised else (1, 1, 1), np.float32)
    shift = -mean * factor / np.float32(spec.scale)
    x: NDArray[np.float32] = np.zeros((1, 3, SIDE, SIDE), np.float32)
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def infer(frame: U8) -> tuple[float, float]:
        begin = time.perf_counter()
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for channel in range(3):
            np.multiply(small[:, :, 2 - channel], factor[channel], out=x[0, channel])
            x[0, channel] += shift[channel]
        ready = time.perf_counter()
        request.infer(share_outputs=True)
        end = time.perf_counter()
        return (end - ready) * 1e3, (end - begin) * 1e3

    return Contender(name, infer, "")


def render(result: dict[str, Any]) -> str:
    """Return the table in Markdown, and whether the small size keeps what it promises."""
    rows, unit, mine = result["rows"], result["rows"][UNIT]["network"]["median"], result["rows"][OURS]
    text = [
        f"{result['cpu']}, OpenVINO {result['openvino']} {result['precision']}, {result['threads']} threads; "
        f"{result['frames']} frames each in {result['rounds']} rounds; load {result['load'][0]} before, "
        f"{result['load'][1]} after.  Median (interquartile range) in ms.\n\n",
        "| | network | passes | whole frame | whole frame, times ours | graph |\n|---|---:|---:|---:|---:|---|\n",
    ]
    for name, row in rows.items():
        network, whole = row["network"], row["whole"]
        text.append(
            f"| {name} | {network['median']:.1f} ({network['iqr']:.1f}) | {network['median'] / unit:.2f} "
            f"| {whole['median']:.1f} ({whole['iqr']:.1f}) | {whole['median'] / mine['whole']['median']:.2f} "
            f"| {row['note']} |\n"
        )
    text += [f"| {name} | not measured: {reason} | | | | |\n" for name, reason in result["missing"].items()]
    passes = mine["network"]["median"] / unit
    text.append(f"\n- at most {PASSES:g} passes: {passes:.2f}, {'kept' if passes <= PASSES else 'missed'}\n")
    for name, wanted in FASTER_THAN.items():
        if name in rows:
            ratio = rows[name]["whole"]["median"] / mine["whole"]["median"]
            text.append(
                f"- {wanted:g} times faster than {name}: {ratio:.2f}, {'kept' if ratio >= wanted else 'missed'}\n"
            )
    return "".join(text)
