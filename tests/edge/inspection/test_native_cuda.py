"""The kernels' text is one for CPU and GPU: where a CUDA compiler is at hand, it must accept every file unchanged."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import edge.inspection

KERNELS = Path(edge.inspection.__file__).parent / "kernels"
# Turing, Orin, Blackwell: the oldest, the Jetson and the newest that are meant.
TARGETS = ("sm_75", "sm_87", "sm_120")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler here")
@pytest.mark.parametrize("name", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_every_kernel_compiles_for_gpus(name: str, tmp_path: Path) -> None:
    for target in TARGETS:
        cubin = tmp_path / f"{target}.cubin"
        words = ["nvcc", f"-arch={target}", "-cubin", "-fmad=false", str(KERNELS / name), "-o", str(cubin)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert cubin.stat().st_size > 1000


def test_all_kernels_are_there() -> None:
    assert {path.name for path in KERNELS.glob("*.cu")} >= {"prepare.cu", "hog.cu", "nearest.cu", "compare.cu"}
