"""Planted faults in the kernels' text: each barrier left out, an index off by one, a wrong bound.  All are found."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.inspection.cuda.compile import KERNELS
from tests.edge.inspection.cuda import fibers
from tests.edge.inspection.cuda.emulated import EmulatedGpu, EmulatorError
from tests.edge.inspection.cuda.stages import run_all

SEEDS = (0, 1, 2)
# Without it some threads look through groups of which they need nothing, and find the same.
HARMLESS = "floor = state->prefix;"


def barriers(path: Path) -> list[tuple[str, int]]:
    """Return the lines of a text that wait."""
    lines = ["", *path.read_text().splitlines()]
    return [(path.name, n) for n, line in enumerate(lines) if "SYNC();" in line and HARMLESS not in lines[n - 1]]


BARRIERS = [barrier for path in (*sorted(KERNELS.glob("*.cu")), KERNELS / "lanes.h") for barrier in barriers(path)]
MUTANTS = [
    ("hog", "votes[k * HOG_STRIP + i] += share[k", "votes[(k + 1) % K * HOG_STRIP + i] += share[k"),
    ("hog", "y > 0 && y < height - 1", "y > 0 && y < height"),
    ("nearest", "similarity[k] > similarity[at]", "similarity[k] >= similarity[at]"),
    ("nearest", "here == there && lane[j] < at", "here == there"),
    ("compare", "n = smaller(COMPARE_STRIP, positions - first)", "n = COMPARE_STRIP"),
    ("compare", "if (value > kth) sum += value", "if (value >= kth) sum += value"),
    ("prepare", "end - t >= 4 ? 4 : end - t >= 2", "end - t >= 3 ? 4 : end - t >= 2"),
]


def outcome(seed: int, *sources: str, kernels: Path = KERNELS) -> list[object]:
    """Return what the kernels of these files make of some frames."""
    gpu = EmulatedGpu(seed=seed, kernels=kernels)
    found = run_all(gpu, sources)
    gpu.close()
    return found


@functools.cache
def expected(*sources: str) -> list[object]:
    return outcome(0, *sources)


def is_found(*sources: str, **how: object) -> bool:
    """Whether any order of work shows that something is wrong."""
    for seed in SEEDS:
        try:
            found = outcome(seed, *sources, **how)  # type: ignore[arg-type]
        except EmulatorError:
            return True
        pairs = zip(found, expected(*sources), strict=True)
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):  # type: ignore[arg-type]
            return True
    return False


@pytest.mark.parametrize("source", ["prepare", "hog", "nearest", "compare"])
def test_nothing_is_found_where_nothing_is_wrong(source: str) -> None:
    assert not is_found(source)


@pytest.mark.parametrize(("file", "line"), BARRIERS)
def test_each_barrier_is_needed(file: str, line: int) -> None:
    sources = ("nearest", "compare") if file == "lanes.h" else (Path(file).stem,)
    modules = [fibers.module(KERNELS / f"{source}.cu", fibers.FLAGS) for source in sources]
    expected(*sources)
    for module in modules:
        module.skip_barrier(file, line)
    try:
        assert is_found(*sources)
        assert any(module.skipped for module in modules)
    finally:
        for module in modules:
            module.skip_barrier("", 0)


@pytest.mark.parametrize(("source", "right", "wrong"), MUTANTS)
def test_each_fault_is_found(source: str, right: str, wrong: str, tmp_path: Path) -> None:
    kernels = Path(shutil.copytree(KERNELS, tmp_path / "kernels"))
    path = kernels / f"{source}.cu"
    text = path.read_text()
    assert text.count(right) >= 1
    path.write_text(text.replace(right, wrong))
    assert is_found(source, kernels=kernels)
