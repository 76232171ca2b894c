"""`train-export`, whole: a finished run in, `redi.plan` out."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch

from edge import __version__
from edge.bundle import write_bundle
from edge.cli import console, progress
from edge.errors import TrainingError
from edge.files import utf8_text
from edge.frames import U8
from edge.manifest import PROMPT_CHOICES, Golden, GoldenFrame
from train.datasets import load_images, open_dataset
from train.detector import Bank
from train.export.golden import golden_images
from train.export.graph import HalfCore, RoundedCore, export_graph, fused
from train.runfolder import RunFolder
from train.trained import TorchScorer, load_trained

#: Largest relative score difference on the golden frames that another runtime may show.
GOLDEN_TOLERANCE = 0.01

#: The same for mixed precision, and the largest that `--fp16` itself may cause.
FP16_TOLERANCE = 0.03


@dataclass
class ExportReport:
    """What was written: `fp16_error` is the largest relative score change on the golden frames, None for fp32."""

    path: Path
    size: int
    golden: int
    fp16_error: float | None


def export_bundle(folder: RunFolder, out: Path, *, fp16: bool, golden_count: int = 3) -> ExportReport:
    """Write the run's bundle to `out`, atomically.

    Raises:
        TrainingError: the run is not finished, it chooses prompts as no station can, or fp16 moves a golden score by
            more than `FP16_TOLERANCE`.
        DataError: the training images, from which golden frames are taken, are gone.
    """
    trained = load_trained(folder)
    config = trained.config
    choice = trained.spec.core.prompt_choice
    if choice not in PROMPT_CHOICES:
        raise TrainingError(
            f"{folder.path}: --prompt {choice} cannot be exported: a station chooses before its network runs",
            "train with --prompt nearest-hog; train-eval scores this run as it is",
        )
    samples = open_dataset(config.data, layout=config.layout, category=config.category).train
    step = max(1, len(samples) // golden_count)
    chosen = [image for _, image in load_images(samples[::step][:golden_count])]
    frames = golden_images(chosen)
    with progress(transient=True) as bar:
        task = bar.add_task("exporting", total=3, note="scoring golden frames")
        recorded = _score(trained.scorer(), frames)
        bar.update(task, advance=1, note="tracing the core to ONNX")
        core = fused(trained.model)
        graph = export_graph(HalfCore(core) if fp16 else core, trained.spec)
        bar.update(task, advance=1, note="writing the bundle")
        error = _fp16_error(recorded, _score(trained.scorer(RoundedCore(core)), frames)) if fp16 else None
        golden = Golden(
            tolerance=FP16_TOLERANCE if fp16 else GOLDEN_TOLERANCE,
            frames=tuple(GoldenFrame(name, score, peak) for name, score, peak in recorded),
        )
        members: dict[str, bytes | np.ndarray] = {
            "core.onnx": graph,
            "golden.json": msgspec.json.encode(golden),
            "trained.json": msgspec.json.encode(sorted(trained.digests)),
        }
        if trained.bank is not None:
            members |= _prompts(trained.bank, np.float16 if fp16 else np.float32)
        for name, image in frames:
            members[f"golden/{name}.png"] = _png(image)
        provenance = {
            **trained.provenance,
            "run": utf8_text(folder.path.resolve().name),
            "exported_by": f"redi-edge {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        }
        model = trained.spec_in("fp16" if fp16 else "fp32")
        write_bundle(out, model=model, members=members, provenance=provenance)
        bar.update(task, advance=1)
    return ExportReport(out, out.stat().st_size, len(frames), error)


def _prompts(bank: Bank, number: type[np.floating[Any]]) -> dict[str, bytes | np.ndarray]:
    members: dict[str, bytes | np.ndarray] = {
        "prompts/descriptors.npy": bank.descriptors,
        "prompts/names.json": msgspec.json.encode(bank.names),
    }
    for name, tensor in bank.features.items():
        members[f"prompts/{name}.npy"] = tensor.numpy().astype(number)
    return members


def _score(scorer: TorchScorer, frames: list[tuple[str, U8]]) -> list[tuple[str, float, float]]:
    scored = []
    for name, image in frames:
        result = scorer.score(image)
        if not np.isfinite(result.score):
            raise TrainingError(f"golden frame {name} scores {result.score}", "the model is broken; train again")
        scored.append((name, result.score, result.peak))
    return scored


def _fp16_error(reference: list[tuple[str, float, float]], measured: list[tuple[str, float, float]]) -> float:
    """Return the largest relative score change, after checking it."""
    error = max(abs(m[1] - r[1]) / r[1] for r, m in zip(reference, measured, strict=True))
    if error > FP16_TOLERANCE:
        raise TrainingError(
            f"fp16 moves a golden score by {error:.1%}, more than the {FP16_TOLERANCE:.0%} allowed",
            "export without --fp16",
        )
    console.print(f"fp16: largest score change on the golden frames {error:.3%} (bound {FP16_TOLERANCE:.0%})")
    return error


def _png(image: U8) -> bytes:
    done, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise TrainingError("a golden frame could not be encoded as PNG")
    return bytes(encoded.tobytes())
