"""A small real bundle, for the tests of all that reads one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import zmq

from edge.bundle import write_bundle
from edge.manifest import (
    CompareSpec,
    CoreSpec,
    Golden,
    GoldenFrame,
    InputSpec,
    MapSpec,
    ModelSpec,
)
from tests.ports import free_port

PROMPTS = 3


def small_model(**changes: Any) -> ModelSpec:
    model = ModelSpec(
        method="redi",
        backbone="resnet18",
        input=InputSpec(height=32, width=64),
        map=MapSpec(),
        compare=CompareSpec(scales=((4, 8, 16), (8, 4, 8)), sigma=2.0, top_k=10),
        core=CoreSpec(prompt_features={"key": (2, 3), "value": (4,)}),
    )
    return msgspec.structs.replace(model, **changes)


def small_members() -> dict[str, bytes | np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 5, 3), np.uint8)
    golden = Golden(tolerance=0.01, frames=(GoldenFrame("good 1", 0.25, 0.5),))
    return {
        "core.onnx": b"not a graph, but bytes all the same",
        "prompts/descriptors.npy": rng.random((PROMPTS, 9 * 2 * 4), np.float32),
        "prompts/key.npy": rng.random((PROMPTS, 2, 3), np.float32),
        "prompts/value.npy": rng.random((PROMPTS, 4), np.float32).astype(np.float16),
        "prompts/names.json": msgspec.json.encode(["a.png", "b.png", "ü.png"]),
        "golden.json": msgspec.json.encode(golden),
        "golden/good 1.png": cv2.imencode(".png", image)[1].tobytes(),
    }


@pytest.fixture
def model() -> Callable[..., ModelSpec]:
    return small_model


@pytest.fixture
def members() -> dict[str, bytes | np.ndarray]:
    return small_members()


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    path = tmp_path / "redi.plan"
    write_bundle(path, model=small_model(), members=small_members(), provenance={"seed": "7"})
    return path


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Sockets that are closed however the test ends: those that are left would hang the interpreter."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(0)


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """A folder in memory, where there is one: killing leaves the same behind there, and syncing takes no time.

    Its path is short enough for sockets.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(name="free_port")
def a_free_port() -> int:
    """A port at which nobody listens, nor at the next two."""
    return free_port()
