"""The engine that `train-export --fp16` builds where there is a GPU; here all of it is played."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.bundle import Bundle
from edge.cuda_driver import DriverError
from edge.inspection.cuda import tensorrt_engine
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.fake_tensorrt import World, play_machine
from tests.tiny_bundle import write_tiny_bundle
from train.commands.export import _build_engine


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_tiny_bundle(tmp_path / "redi.plan", calibrated=False, half=True).path


def test_without_a_gpu_one_line_says_why(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(library: str) -> None:
        raise DriverError("cannot be loaded")

    monkeypatch.setattr(tensorrt_engine, "probe_driver", no_driver)
    line = _build_engine(half)
    assert line == f"engine: none built: no NVIDIA driver: cannot be loaded; where it will run: edge-build {half}"


def test_with_a_gpu_it_lies_in_the_bundle(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, gpu = World(version="10.16.1.11"), EmulatedGpu(integrated=True)
    play_machine(monkeypatch, world, gpu)
    assert _build_engine(half) == f"engine: for sm_87 Emulated, TensorRT 10.16.1.11, fp16, in {half}"
    with Bundle.open(half) as bundle:
        (key,) = bundle.manifest.engines.values()
    assert (key.runtime, key.device, key.version, key.precision) == ("tensorrt", "sm_87 Emulated", "10.16.1.11", "fp16")
    gpu.close()


def test_an_engine_that_cannot_be_built_leaves_the_bundle_whole(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = half.read_bytes()
    gpu = EmulatedGpu()
    play_machine(monkeypatch, World(build_fails="out of memory"), gpu)
    assert "none built: TensorRT 10.3.0 cannot build the engine: out of memory" in _build_engine(half)
    assert half.read_bytes() == content
    gpu.close()
