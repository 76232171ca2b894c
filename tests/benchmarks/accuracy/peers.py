"""The peers' own implementations: their environment, and their figures by our metrics on our images.

They run in a process and an environment of their own.  What crosses are arrays: images that our kernels resized and
normalised, our backbone's weights, and back the anomaly maps and the image scores.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edge.errors import DataError, UsageError
from edge.frames import F32, U8
from edge.manifest import InputSpec, MapSpec
from tests.benchmarks.accuracy.rows import Row
from tests.benchmarks.accuracy.splits import Split
from train.datasets import Sample, load_images
from train.evaluate import Scored, evaluate
from train.prepared import Preparer

HERE = Path(__file__).resolve().parent

#: Peers whose accuracy is measured, and whether a budget applies: the others fit in one pass.
PEERS = {"patchcore": False, "padim": False, "rd4ad": True}

#: Where `--setup` puts the peers' environment unless a folder is named.
DEFAULT_ENVIRONMENT = Path.home() / ".cache" / "redi-edge" / "peers"


def set_up(folder: Path, python: str) -> None:
    """Make the peers' environment in `folder` with this Python interpreter, or complete it.

    Raises:
        UsageError: it cannot be made.
    """
    console = Console(stderr=True, highlight=False)
    steps = [
        [python, "-m", "venv", str(folder)],
        [str(_python(folder)), "-m", "pip", "install", "-r", str(HERE / "requirements.txt")],
    ]
    for step in steps:
        console.print(f"[cyan]$ {' '.join(step)}[/]", soft_wrap=True)
        try:
            code = subprocess.run(step, check=False).returncode
        except OSError as error:
            raise UsageError(f"{step[0]}: {error.strerror}", "name a Python 3.10 or newer with --python") from error
        if code:
            raise UsageError(
                f"the peers' environment cannot be made in {folder}: exit code {code}",
                "see the message above; without it, run our methods alone: --methods redi",
            )


def call(environment: Path, action: str, folder: Path) -> dict[str, Any]:
    """Run the worker in the peers' environment on `folder`; return its result, which has `error` where it failed."""
    python = _python(environment)
    if not python.is_file():
        return {"error": f"the peers' environment is not set up: run.py --setup {environment}"}
    (folder / "result.json").unlink(missing_ok=True)
    settings = {
        "OMP_WAIT_POLICY": "passive",
        "PYTHONWARNINGS": "ignore",
        "TQDM_MININTERVAL": "5",
        # PatchCore's coreset otherwise fragments glibc's heap, gigabytes of it on sets of about thirty images.
        "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
        **os.environ,
    }
    # The peers' environment must not see our packages.
    settings.pop("PYTHONPATH", None)
    done = subprocess.run([python, HERE / "peers_worker.py", action, folder], check=False, env=settings)
    if not (folder / "result.json").is_file():
        return {"error": f"its process ended with exit code {done.returncode}"}
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def prepare(split: Split, size: tuple[int, int], weights: str, folder: Path) -> str:
    """Write what the worker reads into `folder`: images, weights and our own features; return the backbone's name.

    Raises:
        DataError: images or weights cannot be used.
    """
    import torch

    from train.backbones import backbone_from_state, load_weights

    folder.mkdir(parents=True, exist_ok=True)
    state, source = load_weights(weights)
    backbone = backbone_from_state(state, source)
    torch.save(backbone.state_dict(), folder / "weights.pth")
    for name, samples in (("train", split.dataset.train), ("test", split.dataset.test)):
        np.save(folder / f"{name}.npy", _prepared(samples, backbone.input_spec(*size)))
    x = torch.from_numpy(np.load(folder / "test.npy", mmap_mode="r")[:2].copy())
    with torch.no_grad():
        features = {f"layer{number}": found.numpy() for number, found in enumerate(backbone(x), start=1)}
    np.savez(folder / "reference.npz", x=x.numpy(), **features)
    return backbone.name


def _prepared(samples: tuple[Sample, ...], input_spec: InputSpec) -> F32:
    """Return the readable images, float32 `(N, 3, H, W)`, normalised, from the station's own kernels."""
    preparer = Preparer(input_spec, MapSpec())
    prepared = []
    for _, image in load_images(samples):
        preparer(image)
        prepared.append(preparer.x.copy())
    if not prepared:
        raise DataError("there are no readable images", "check the data set")
    return np.stack(prepared)


class StoredScorer:
    """Gives back, image by image, what a peer's process has found."""

    def __init__(self, maps: F32, scores: F32) -> None:
        self._found = zip(maps, scores, strict=True)

    def score(self, image: U8) -> Scored:
        """Return the next image's score, peak and map."""
        anomaly_map, score = next(self._found)
        return Scored(float(score), float(anomaly_map.max()), anomaly_map)


def measure(
    settings: dict[str, Any], split: Split, backbone: str, folder: Path, environment: Path, threads: int | None
) -> Row:
    """Fit and score a peer on what `prepare` wrote into `folder`; a failure is a row, too."""
    request = {
        "method": settings["method"],
        "backbone": backbone,
        "seed": settings["seed"],
        "size": settings["pixels"],
        "minutes": settings.get("minutes"),
        "epochs": settings.get("epochs"),
        "coreset": settings.get("coreset"),
        "threads": threads,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    result = call(environment, "fit", folder)
    if "error" in result:
        return Row(settings, error=result["error"])
    with np.load(folder / "scores.npz") as found:
        scorer = StoredScorer(found["maps"], found["scores"])
    try:
        evaluation = evaluate(scorer, split.dataset, progress=False)
    except DataError as error:
        return Row(settings, error=error.problem)
    summary = evaluation.summary()
    metrics = {name: value for name, value in asdict(evaluation.metrics).items() if name != "reasons"}
    return Row(settings, metrics, details=result | {"images": summary["images"], "kinds": summary["kinds"]})


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"
