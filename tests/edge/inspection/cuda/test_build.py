"""Opening and building engines, with a played TensorRT on an emulated GPU."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edge.inspection.cuda.build as building
from edge.bundle import Bundle, update_bundle
from edge.cli import console
from edge.errors import BundleError, CudaError
from edge.inspection.cuda.build import build_engine, load_engine, open_engine, this_machine
from edge.inspection.cuda.engines import cache_folder, engine_path, find_engine, keep_engine, member_name
from edge.inspection.cuda.tensorrt_engine import BuildOptions, EngineRefusedError
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.fake_tensorrt import World, install
from tests.tiny_bundle import TinyBundle, write_tiny_bundle


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(monkeypatch, world)
    return world


@pytest.fixture
def gpu(world: World) -> Iterator[EmulatedGpu]:
    gpu: EmulatedGpu = world.plug_in(EmulatedGpu(integrated=True))
    yield gpu
    gpu.close()


@pytest.fixture
def bundle(tiny: TinyBundle) -> Iterator[Bundle]:
    with Bundle.open(tiny.path) as opened:
        yield opened


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(console, "_file", text)
    return text


def test_built_once_then_opened(bundle: Bundle, gpu: EmulatedGpu, world: World, said: io.StringIO) -> None:
    open_engine(bundle, gpu).close()
    assert len(world.built) == 1
    assert engine_path(bundle, this_machine(bundle, gpu)).is_file()
    for words in ("building the engine: TensorRT 10.3.0, fp32, for sm_87 Emulated", "train-export --fp16", "kept in"):
        assert words in said.getvalue()
    engine = open_engine(bundle, gpu)
    assert engine.describe == "TensorRT 10.3.0 fp32"
    assert len(world.built) == 1


def test_fp16_bundles_have_engines_of_their_own(
    bundle: Bundle, gpu: EmulatedGpu, world: World, said: io.StringIO, tmp_path: Path
) -> None:
    open_engine(bundle, gpu).close()
    half = write_tiny_bundle(tmp_path / "half.plan", half=True)
    with Bundle.open(half.path) as other:
        assert open_engine(other, gpu).describe == "TensorRT 10.3.0 fp16"
    assert len(world.built) == 2
    assert said.getvalue().count("train-export --fp16") == 1


def test_a_later_build_knows_the_timings(bundle: Bundle, gpu: EmulatedGpu, world: World) -> None:
    build_engine(bundle, gpu, BuildOptions())
    build_engine(bundle, gpu, BuildOptions())
    assert [asked["timing"] for asked in world.built] == [b"10.3.0 sm_86 ", b"10.3.0 sm_86 layer1 "]


def test_an_engine_that_tensorrt_refuses_is_built_again(
    bundle: Bundle, gpu: EmulatedGpu, world: World, said: io.StringIO
) -> None:
    keep_engine(bundle, this_machine(bundle, gpu), b"torn before it was kept")
    open_engine(bundle, gpu).close()
    assert len(world.built) == 1
    assert "is refused and will be built again" in said.getvalue()
    open_engine(bundle, gpu).close()
    assert len(world.built) == 1


def test_a_new_tensorrt_builds_its_own(bundle: Bundle, gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    open_engine(bundle, gpu).close()
    newer = World(version="11.4.0.106", gpu=gpu)
    install(monkeypatch, newer)
    assert open_engine(bundle, gpu).describe == "TensorRT 11.4.0.106 fp32"
    assert len(newer.built) == 1


def test_a_cache_that_cannot_be_written_costs_the_next_start_a_build(
    bundle: Bundle, gpu: EmulatedGpu, world: World, said: io.StringIO
) -> None:
    cache_folder().parent.mkdir()
    cache_folder().write_text("a file where a folder should be")
    open_engine(bundle, gpu).close()
    assert "the engine cannot be kept" in said.getvalue()
    open_engine(bundle, gpu).close()
    assert len(world.built) == 2


def test_the_bundle_is_named_where_its_graph_cannot_be_read(bundle: Bundle, gpu: EmulatedGpu, world: World) -> None:
    world.unsupported = {"Tanh"}
    with pytest.raises(BundleError) as refused:
        open_engine(bundle, gpu)
    assert str(bundle.path) in refused.value.problem
    assert "(Tanh)" in refused.value.problem
    assert "--runtime portable" in refused.value.hint


def test_the_device_is_current_where_it_is_built(bundle: Bundle, gpu: EmulatedGpu, world: World) -> None:
    where: list[str] = []

    def on_step(step: int) -> None:
        # An emulated device refuses a thread that has not made it current.
        gpu.stream()
        where.append(threading.current_thread().name)

    world.on_step = on_step
    build_engine(bundle, gpu, BuildOptions())
    assert set(where) == {"build-engine"}


def test_ctrl_c_ends_a_build_and_keeps_nothing(bundle: Bundle, gpu: EmulatedGpu, world: World) -> None:
    world.steps = 1_000_000
    last: list[int] = []

    def on_step(step: int) -> None:
        last[:] = [step]
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if step > 3:
            threading.Event().wait(0.001)

    world.on_step = on_step
    with pytest.raises(KeyboardInterrupt):
        open_engine(bundle, gpu)
    assert 3 <= last[0] < 100_000
    ended = last[0]
    threading.Event().wait(0.01)
    assert last[0] == ended
    assert list(find_engine(bundle, this_machine(bundle, gpu))) == []
    world.on_step, world.steps = lambda step: None, 4
    open_engine(bundle, gpu).close()


def test_a_build_that_fails_fails_here(bundle: Bundle, gpu: EmulatedGpu, world: World) -> None:
    world.build_fails = "no implementation"
    with pytest.raises(CudaError, match="no implementation"):
        open_engine(bundle, gpu)
    assert list(find_engine(bundle, this_machine(bundle, gpu))) == []


def test_phases_are_bars_while_they_last(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(console, "_file", text)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "is_interactive", True)
    shown = building.ShownProgress()
    with shown:
        shown.phase_start("Building [engine]", None, 2)
        shown.phase_start("Tactics", "Building [engine]", 5)
        shown.step_complete("Tactics", 2)
        assert [(task.description, task.completed, task.total) for task in shown._bar.tasks] == [
            ("Building \\[engine]", 0, 2),
            ("  Tactics", 3, 5),
        ]
        shown.phase_finish("Tactics")
        shown.step_complete("Building [engine]", 0)
        # A step or end of what never began, as after a cancelled phase.
        shown.step_complete("Tactics", 3)
        shown.phase_finish("Tactics")
        assert [task.completed for task in shown._bar.tasks] == [1]
        shown._bar.refresh()
        # A bar that is shown already, such as a station's, is in nobody's way.
        with building.ShownProgress() as inner:
            inner.phase_start("Tactics", None, 1)
    assert "Building [engine]" in text.getvalue()


def test_what_runs_is_what_was_built(bundle: Bundle, gpu: EmulatedGpu, world: World) -> None:
    world.dla_cores = 2
    found = build_engine(bundle, gpu, BuildOptions(dla=1))
    assert found.key.device == "sm_87 Emulated, DLA 1"
    assert load_engine(bundle, found).describe == "TensorRT 10.3.0 fp32 with DLA 1"
    world.device = "sm_72"
    with pytest.raises(EngineRefusedError):
        load_engine(bundle, found)
    keep_engine(bundle, found.key, found.plan)
    assert np.all([each.dla == 1 for each in find_engine(bundle, this_machine(bundle, gpu))])


def test_an_engine_in_the_bundle_needs_no_cache(
    tiny: TinyBundle, gpu: EmulatedGpu, world: World, tmp_path: Path
) -> None:
    path = tmp_path / "redi.plan"
    shutil.copy(tiny.path, path)
    with Bundle.open(path) as bundle:
        found = build_engine(bundle, gpu, BuildOptions())
        member = member_name(bundle, this_machine(bundle, gpu))
    update_bundle(path, {member: found.plan}, {member: found.key})
    with Bundle.open(path) as bundle:
        open_engine(bundle, gpu).close()
        assert not engine_path(bundle, this_machine(bundle, gpu)).exists()
    assert len(world.built) == 1
