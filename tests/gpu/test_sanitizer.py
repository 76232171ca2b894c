from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.inspection.cuda.device import Gpu
from edge.manifest import CanvasSpec
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.gpu.sanitized import inspect
from tests.tiny_bundle import TinyBundle, write_tiny_bundle


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_nothing_for_the_sanitizer(half: TinyBundle, gpu: Gpu, root: Path, tmp_path: Path, tool: str) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("no compute-sanitizer on the PATH")
    canvas = CanvasSpec("pad", 2, 2, 32)
    tiled = write_tiny_bundle(tmp_path / "redi.plan", bank_dtype=np.float16, canvas=canvas).path
    words = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
    words += [sys.executable, "-m", "tests.gpu.sanitized", str(half.path), str(tiled)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, cwd=root)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_the_sanitizer_watches_runs(half: TinyBundle) -> None:
    gpu = EmulatedGpu()
    inspect(str(half.path), gpu)
    assert {"prepare_nv12", "prepare_flat_bayer", "gather_prompt", "top_mean"} <= gpu.launches.keys()
    gpu.close()
