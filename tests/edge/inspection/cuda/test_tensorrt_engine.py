"""The TensorRT adapter against a played TensorRT: what it asks for, what it refuses, and what it says."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge.bundle import CORE, Bundle
from edge.cuda_driver import DriverError
from edge.errors import BundleError, BundleMismatchError, CudaError, RuntimeUnavailableError
from edge.inspection.cuda import tensorrt_engine
from edge.inspection.cuda.tensorrt_engine import (
    BuildCancelledError,
    BuildOptions,
    EngineRefusedError,
    TensorRtEngine,
    build_plan,
    load_tensorrt,
)
from edge.inspection.ports import core_inputs, core_outputs
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.fake_tensorrt import MAGIC, World, install
from tests.tiny_bundle import TinyBundle

VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")


class Watcher:
    """A build's progress, written down."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.seen: list[tuple[object, ...]] = []

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self.seen.append(("start", phase, parent, steps))

    def step_complete(self, phase: str, step: int) -> None:
        self.seen.append(("step", phase, step))

    def phase_finish(self, phase: str) -> None:
        self.seen.append(("finish", phase))


@pytest.fixture
def bundle(tiny: TinyBundle) -> Iterator[Bundle]:
    with Bundle.open(tiny.path) as opened:
        yield opened


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(monkeypatch, world)
    return world


def build(bundle: Bundle, options: BuildOptions | None = None) -> bytes:
    return build_plan(bundle.read(CORE), options or BuildOptions(), b"", Watcher()).plan


@pytest.mark.parametrize("version", VERSIONS)
def test_a_network_is_strongly_typed_whatever_the_version(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    world = World(version=version)
    install(monkeypatch, world)
    watcher = Watcher()
    built = build_plan(bundle.read(CORE), BuildOptions(), b"", watcher)
    (asked,) = world.built
    assert asked["strongly_typed"]
    # No precision by flag, and float32 that is float32.
    assert asked["flags"] == set()
    assert (asked["pools"], asked["level"], asked["dla"]) == ({}, 3, None)
    assert built.timing.startswith(version.encode())
    assert watcher.seen[:3] == [
        ("start", "Building Engine", None, 2),
        ("start", "Tactic Selection", "Building Engine", 4),
        ("step", "Tactic Selection", 0),
    ]
    assert watcher.seen[-1] == ("finish", "Building Engine")


def test_options_reach_the_builder(bundle: Bundle, world: World) -> None:
    world.dla_cores = 2
    build(bundle, BuildOptions(dla=1, workspace_mib=256, level=5))
    (asked,) = world.built
    assert asked["pools"] == {"WORKSPACE": 256 << 20}
    assert (asked["level"], asked["dla"], asked["flags"]) == (5, 1, {"GPU_FALLBACK"})


def test_an_accelerator_that_is_not_there(bundle: Bundle, world: World) -> None:
    world.dla_cores = 1
    with pytest.raises(CudaError, match=r"DLA 1: TensorRT 10\.3\.0 finds 1"):
        build(bundle, BuildOptions(dla=1))


def test_timings_are_used_again_and_foreign_ones_ignored(bundle: Bundle, world: World) -> None:
    first = build_plan(bundle.read(CORE), BuildOptions(), b"", Watcher()).timing
    second = build_plan(bundle.read(CORE), BuildOptions(), first, Watcher()).timing
    assert second.startswith(first)
    for foreign in (b"11.4.0 sm_90 layer", b"torn"):
        build_plan(bundle.read(CORE), BuildOptions(), foreign, Watcher())
        assert world.built[-1]["timing"] == b"10.3.0 sm_86 "


def test_the_parser_names_the_nodes(bundle: Bundle, world: World) -> None:
    world.unsupported = {"Tanh", "Log"}
    with pytest.raises(BundleError) as refused:
        build(bundle)
    # The nodes of the tiny graph have no names: then their numbers.
    assert "(Log): no importer for Log" in refused.value.problem
    assert refused.value.problem.count("no importer for") == 3
    assert "(and 1 more)" in refused.value.problem


def test_a_graph_that_is_none(world: World) -> None:
    with pytest.raises(BundleError, match="the file is no model"):
        build_plan(b"\xff\xff no graph", BuildOptions(), b"", Watcher())


def test_a_build_that_fails_says_why(bundle: Bundle, world: World) -> None:
    world.build_fails = "Error Code 10: Could not find any implementation for node conv\nError Code 2: out of memory"
    with pytest.raises(CudaError) as failed:
        build(bundle)
    assert "Could not find any implementation for node conv" in failed.value.problem
    assert "out of memory" in failed.value.problem
    assert "--workspace" in failed.value.hint


def test_a_builder_that_cannot_be_made(bundle: Bundle, world: World) -> None:
    world.no_builder = True
    with pytest.raises(CudaError, match="CUDA initialization failure with error: 35") as failed:
        build(bundle)
    assert "edge-doctor" in failed.value.hint


def test_cancelled_at_the_next_step(bundle: Bundle, world: World) -> None:
    watcher = Watcher()
    world.steps = 1000
    world.on_step = lambda step: watcher.cancelled.set() if step == 3 else None
    with pytest.raises(BuildCancelledError):
        build_plan(bundle.read(CORE), BuildOptions(), b"", watcher)
    assert [seen for seen in watcher.seen if seen[0] == "step"][-1] == ("step", "Tactic Selection", 3)
    # Every phase that had begun was ended.
    assert watcher.seen[-2:] == [("finish", "Tactic Selection"), ("finish", "Building Engine")]


@pytest.mark.parametrize(("error", "cancels"), [(ValueError("broken"), False), (KeyboardInterrupt(), True)])
def test_no_exception_reaches_tensorrt(
    bundle: Bundle, world: World, caplog: pytest.LogCaptureFixture, error: BaseException, cancels: bool
) -> None:
    class Broken(Watcher):
        def step_complete(self, phase: str, step: int) -> None:
            raise error

    with caplog.at_level(logging.ERROR, "edge.tensorrt"):
        if cancels:
            with pytest.raises(BuildCancelledError):
                build_plan(bundle.read(CORE), BuildOptions(), b"", Broken())
        else:
            assert build_plan(bundle.read(CORE), BuildOptions(), b"", Broken()).plan
            assert "cannot be shown" in caplog.text


def bound(bundle: Bundle, gpu: EmulatedGpu, engine: TensorRtEngine) -> dict[str, Any]:
    """Bind memory to all inputs and outputs; return it with the shapes."""
    shapes = core_inputs(bundle.manifest.model) | core_outputs(bundle.manifest.model)
    memory = {name: gpu.allocate(4 * int(np.prod(shape))) for name, shape in shapes.items()}
    engine.bind({name: block.address for name, block in memory.items()})
    return {name: (memory[name], shape) for name, shape in shapes.items()}


def test_an_engine_computes_what_the_graph_says(bundle: Bundle, world: World) -> None:
    gpu: EmulatedGpu = world.plug_in(EmulatedGpu())
    engine = TensorRtEngine(build(bundle), bundle.manifest.model, describe="played")
    assert engine.describe == "played"
    twin = TensorRtEngine(build(bundle), bundle.manifest.model)
    rng = np.random.default_rng(0)
    results = []
    for each in (engine, twin):
        ports = bound(bundle, gpu, each)
        shapes = core_inputs(bundle.manifest.model)
        inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for name, values in inputs.items():
            gpu.write(ports[name][0].address, values)
        stream = gpu.stream()
        each.enqueue(stream)
        stream.synchronize()
        memory, shape = ports["fy_0"]
        found = gpu.read(memory.address, np.float32, shape)
        # The tiny network: the prompt, and a share of the map.
        assert np.abs(found - inputs["prompt_level0"]).max() < 2.0
        assert np.corrcoef(found.ravel(), inputs["prompt_level0"].ravel())[0, 1] > 0.8
        results.append(found)
    assert not np.array_equal(*results)
    engine.close()
    twin.close()
    gpu.close()


def test_addresses_must_be_those_of_the_model(bundle: Bundle, world: World) -> None:
    engine = TensorRtEngine(build(bundle), bundle.manifest.model)
    names = core_inputs(bundle.manifest.model) | core_outputs(bundle.manifest.model)
    with pytest.raises(BundleMismatchError, match="fx_0"):
        engine.bind(dict.fromkeys(list(names)[1:], 4096))
    with pytest.raises(BundleMismatchError, match="unknown"):
        engine.bind(dict.fromkeys([*names, "unknown"], 4096))
    world.refuses_addresses = True
    with pytest.raises(CudaError, match="refuses the address of x"):
        engine.bind(dict.fromkeys(names, 4096))


def test_an_inference_that_cannot_be_queued(bundle: Bundle, world: World) -> None:
    gpu: EmulatedGpu = world.plug_in(EmulatedGpu())
    engine = TensorRtEngine(build(bundle), bundle.manifest.model)
    with pytest.raises(CudaError, match="cannot run the engine: enqueueV3: an address is missing"):
        engine.enqueue(gpu.stream())
    gpu.close()


def test_bytes_that_are_no_engine_of_this_machine(bundle: Bundle, world: World) -> None:
    plan = build(bundle)
    model = bundle.manifest.model
    for torn in (plan[:-1], plan[:-200] + bytes(200), b"", b"pickle"):
        with pytest.raises(EngineRefusedError, match=r"torn|magicTag"):
            TensorRtEngine(torn, model)
    assert plan.startswith(MAGIC)
    with pytest.raises(EngineRefusedError, match=r"built by 11\.0\.0"):
        TensorRtEngine(plan.replace(b"10.3.0", b"11.0.0"), model)
    # One refusal says nothing of the next.
    assert TensorRtEngine(plan, model)


def test_a_dla_engine_needs_its_core(bundle: Bundle, world: World) -> None:
    world.dla_cores = 2
    plan = build(bundle, BuildOptions(dla=1))
    assert TensorRtEngine(plan, bundle.manifest.model, dla=1)
    with pytest.raises(EngineRefusedError, match="DLA"):
        TensorRtEngine(plan, bundle.manifest.model)


def wrong_type(ports: dict[str, list[Any]]) -> None:
    ports["fx_1"][1] = "HALF"


def wrong_shape(ports: dict[str, list[Any]]) -> None:
    ports["fx_1"][3] = (1, 8, 8, 9)


def wrong_name(ports: dict[str, list[Any]]) -> None:
    ports["other"] = ports.pop("h")


def wrong_place(ports: dict[str, list[Any]]) -> None:
    ports["h"][2] = "HOST"


def wrong_way(ports: dict[str, list[Any]]) -> None:
    ports["fx_1"][0] = ports["x"][0]


@pytest.mark.parametrize(
    ("twist", "word"),
    [
        (wrong_type, "fx_1 is HALF"),
        (wrong_shape, "8, 8, 9"),
        (wrong_name, "other"),
        (wrong_place, "h in host memory"),
        (wrong_way, "inputs"),
    ],
)
def test_another_models_engine(
    bundle: Bundle, world: World, twist: Callable[[dict[str, list[Any]]], None], word: str
) -> None:
    plan = build(bundle)
    world.twist = twist
    with pytest.raises(BundleMismatchError, match=word):
        TensorRtEngine(plan, bundle.manifest.model)


def test_a_device_that_is_full(bundle: Bundle, world: World) -> None:
    plan = build(bundle)
    world.no_memory = True
    with pytest.raises(CudaError, match="cannot hold the engine: out of memory"):
        TensorRtEngine(plan, bundle.manifest.model)


def test_what_tensorrt_says_is_logged(bundle: Bundle, world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.build_fails = "no implementation"
    with caplog.at_level(logging.DEBUG, "edge.tensorrt"), pytest.raises(CudaError):
        build(bundle)
    assert ("edge.tensorrt", logging.WARNING, "no implementation") in caplog.record_tuples


def test_the_driver_is_asked_before_tensorrt_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(library: str) -> None:
        raise DriverError("cannot be loaded: libcuda.so.1")

    class Trap:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            assert name != "tensorrt", "imported without a driver"

    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Trap(), *sys.meta_path])
    monkeypatch.setattr(tensorrt_engine, "probe_driver", no_driver)
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver: cannot be loaded"):
        load_tensorrt()


def test_machines_that_lack_something(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, World(), devices=0)
    with pytest.raises(RuntimeUnavailableError, match="finds no GPU"):
        load_tensorrt()
    install(monkeypatch, World())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match="TensorRT cannot be imported") as missing:
        load_tensorrt()
    assert "JetPack" in missing.value.hint


@pytest.mark.parametrize(
    ("version", "fine"),
    [
        *((version, True) for version in VERSIONS),
        *(("8.6.1", False), ("10.0.1", False), ("10.2.9", False), ("10.3", True), ("11.9.9.9", True)),
        *(("12.0.0", False), ("12.0.0rc1", False), ("unknown", False), ("", False)),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, version: str, fine: bool) -> None:
    world = World(version="10.3.0")
    install(monkeypatch, world)
    sys.modules["tensorrt"].__version__ = version  # type: ignore[attr-defined]
    if fine:
        assert load_tensorrt() is sys.modules["tensorrt"]
    else:
        with pytest.raises(RuntimeUnavailableError, match="is not supported") as refused:
            load_tensorrt()
        assert f"TensorRT {version} is not supported" in refused.value.problem
        assert "10.3 to 11.x" in refused.value.hint
