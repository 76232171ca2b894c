"""The device on PyCUDA: the real PyCUDA, where it is installed, over a driver that has no device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
SCENARIOS = (
    "names",
    "facts",
    "memory_and_copies",
    "events",
    "launching",
    "kernels",
    "runtime",
    "graphs",
    "failed_recordings",
    "failures",
    "threads",
)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    words = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*words, str(HERE / "stub_cuda.c"), "-o", str(path)], check=True)
    return path


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pycuda(scenario: str, stub: Path) -> None:
    words = [sys.executable, "-m", "tests.edge.inspection.cuda.pycuda_checks", str(stub), scenario]
    environment = {**os.environ, "PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "all well\n"
    assert not done.stderr
