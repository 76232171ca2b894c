"""The real Python bindings of TensorRT, each version in a folder of its own, and libraries that make them importable.

The bindings are small wheels; what they are linked with (the builder, the parser) is not to be had without a GPU
machine's installation.  Libraries of a few empty functions stand in: enough to import every class and signature, not to
call any.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

#: The versions of JetPack 6, JetPack 7.2, and the newest.
PACKAGES = {
    "10.3.0": "tensorrt_cu12_bindings",
    "10.16.1.11": "tensorrt_cu13_bindings",
    "11.4.0.106": "tensorrt_cu13_bindings",
}
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
)
_ROOT = Path(__file__).parents[4]


def bindings(version: str) -> Path:
    """Return the folder of a version; skip the test where it cannot be fetched."""
    _fetch_all()
    if not _folder(version).is_dir():
        pytest.skip(f"{PACKAGES[version]}=={version} cannot be fetched")
    return _folder(version)


def _folder(version: str) -> Path:
    python = "py{}{}".format(*sys.version_info)
    return _ROOT / "build" / "tensorrt-bindings" / f"{version}-{python}"


@functools.cache
def _fetch_all() -> None:
    """Fetch what is not there yet, all at the same time: pip takes its seconds for each."""
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--timeout", "10", "--retries", "1"]
    options = ["-q", "--no-deps", "--only-binary", ":all:"]
    with contextlib.ExitStack() as stack:
        running = {}
        for version, package in PACKAGES.items():
            if not _folder(version).is_dir():
                wheels = stack.enter_context(tempfile.TemporaryDirectory())
                command = [*pip, *options, "-d", wheels, f"{package}=={version}"]
                running[version] = Path(wheels), subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for version, (wheels, process) in running.items():
            try:
                done = process.wait(timeout=60) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                continue
            if done:
                _unpack(next(wheels.glob("*.whl")), _folder(version))


def _unpack(wheel: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as half:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(half)
        # Whole, or not there.
        Path(half).rename(folder)
        Path(half).mkdir()


def stand_ins(folder: Path, version: str) -> Path:
    """Build the empty libraries of a version in `folder`, and return it; skip the test where there is no compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        name = f"lib{library}.so.{version.split('.')[0]}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run([compiler, *options], check=True, timeout=60)
    return folder


def run_with(version: str, folder: Path, program: str) -> Any:
    """Run a program that can import the bindings as `tensorrt`; return what it printed, which is JSON."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(stand_ins(folder, version)),
        "PYTHONPATH": os.pathsep.join([str(bindings(version)), str(_ROOT)]),
    }
    head = "import sys, tensorrt_bindings\nsys.modules['tensorrt'] = tensorrt_bindings\n"
    done = subprocess.run(
        [sys.executable, "-c", head + program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
