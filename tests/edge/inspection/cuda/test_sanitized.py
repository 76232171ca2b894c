"""Every kernel's text under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.inspection.cuda import fibers

ROOT = Path(__file__).parents[4]
TEXT = """
#include "phases.h"
DEVICE void fill(int* values, int n) {
  PHASE(i, n + 1) values[i] = i;
}
KERNEL(beyond, int n, int* out) {
  SHARED(int, value, 8);
  fill(value, n);
  SYNC();
  ONCE out[0] = value[0];
}
KERNEL(overflow, int n, int* out) {
  ONCE out[0] = 0x7fffffff + n;
}
"""
FAULTS = [("beyond", "global-buffer-overflow"), ("overflow", "signed integer overflow")]


def sanitized(*words: str) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    # Python keeps memory until it ends, and the fibers' stacks are none that the sanitizer knows.
    options = {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:symbolize=0",
    }
    command = [sys.executable, "-m", "tests.edge.inspection.cuda.sanitized", *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **options}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_kernels_are_clean() -> None:
    done = sanitized()
    assert (done.returncode, done.stdout) == (0, "all well\n"), done.stderr[-4000:]


@pytest.mark.slow
def test_faults_are_found(tmp_path: Path) -> None:
    (tmp_path / "probe.cu").write_text(TEXT)
    (tmp_path / "phases.h").write_text((fibers.KERNELS / "phases.h").read_text())
    for kernel, expected in FAULTS:
        done = sanitized(str(tmp_path), kernel)
        assert expected in done.stderr, done.stderr[-4000:]
        assert done.returncode != 0
