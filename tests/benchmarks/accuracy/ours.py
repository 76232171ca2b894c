"""Our methods, by the product's own commands: `train-run`, then `train-eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.accuracy.rows import Row
from tests.benchmarks.accuracy.splits import Split

BIN = Path(sys.executable).parent


def measure(settings: dict[str, Any], split: Split, run: Path, options: list[str]) -> Row:
    """Train into the folder `run`, resuming what is there, and evaluate; a failure is a row, too.

    Args:
        settings: of the row; the seed is taken from it.
        split: the images.
        run: the run's folder.
        options: of `train-run`, but for the data, the seed and the folder.
    """
    seed = ["--seed", str(settings["seed"])]
    begin = time.monotonic()
    code, memory, _ = _command("train-run", str(split.root), "--out", str(run), *seed, *options)
    minutes = (time.monotonic() - begin) / 60
    if code:
        return Row(settings, error=f"train-run ended with exit code {code}")
    code, _, answer = _command("train-eval", str(run), str(split.root), "--json")
    if code:
        return Row(settings, error=f"train-eval ended with exit code {code}")
    found = json.loads(answer)
    metrics = {name: value for name, value in found["metrics"].items() if name != "reasons"}
    details = {"minutes": minutes, "peak_memory_gib": memory, "seconds_per_image": found["seconds_per_image"]}
    return Row(settings, metrics, details=details | {"images": found["images"], "kinds": found["kinds"]})


def _command(*words: str) -> tuple[int, float, str]:
    """Run one of our commands; return its exit code, its peak memory in GiB and its stdout."""
    Console(stderr=True, highlight=False).print(f"[cyan]$ {' '.join(words)}[/]", soft_wrap=True)
    process = subprocess.Popen([BIN / words[0], *words[1:]], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        answer = process.stdout.read()
    # `wait4` tells of this one process what `resource` tells of all children together.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 2**20, answer
