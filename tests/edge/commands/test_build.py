"""`edge-build` from end to end: a played TensorRT on an emulated GPU, with the real kernels around it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from edge.bundle import Bundle
from edge.commands.build import main
from edge.commands.run import main as run
from edge.inspection.cuda.build import this_machine
from edge.inspection.cuda.engines import cache_folder, find_engine
from edge.inspection.inspector import Inspector
from edge.keys import Kind, generate
from edge.signing import check_signature, sign_bundle
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.fake_tensorrt import World, install, play_machine
from tests.tiny_bundle import TinyBundle, TinyProduct, write_tiny_bundle


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """A machine with a GPU and all that the CUDA runtime needs, all of it played."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    world, gpu = World(), EmulatedGpu(integrated=True)
    play_machine(monkeypatch, world, world.plug_in(gpu))
    yield world
    gpu.close()


@pytest.fixture
def plan(tiny: TinyBundle, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    path = tmp_path / "redi.plan"
    shutil.copy(tiny.path, path)
    return path


def engines(path: Path, world: World) -> list[Path | None]:
    """Where engines lie that fit the machine."""
    with Bundle.open(path) as bundle:
        return [found.path for found in find_engine(bundle, this_machine(bundle, world.gpu))]


def test_built_checked_and_in_the_bundle(plan: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with Bundle.open(plan) as bundle:
        before = bundle.bundle_id, bundle.calibration_id
    assert main([str(plan)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{plan}: engine built: tensorrt 10.3.0, fp32, sm_87 Emulated, ")
    assert "golden frames score as recorded with it" in captured.err
    assert engines(plan, world) == [plan]
    with Bundle.open(plan) as bundle:
        assert (bundle.bundle_id, bundle.calibration_id) == before
    # Again: there it is, and it is checked all the same.
    assert main([str(plan)]) == 0
    captured = capsys.readouterr()
    assert "was there already" in captured.out
    assert "golden frames score as recorded with it" in captured.err
    assert len(world.built) == 1
    assert main([str(plan), "--rebuild", "--level", "5", "--workspace", "64"]) == 0
    assert (world.built[-1]["level"], world.built[-1]["pools"]) == (5, {"WORKSPACE": 64 << 20})


def test_a_station_uses_it_and_auto_says_so(plan: Path, world: World) -> None:
    assert main([str(plan)]) == 0
    with Bundle.open(plan) as bundle, Inspector(bundle) as inspector:
        assert inspector.describe.startswith("cuda: TensorRT 10.3.0 fp32 on Emulated")
        assert "auto: this machine has all that it needs" in inspector.describe
        assert inspector.verify_golden()
    assert len(world.built) == 1


def test_a_station_without_an_engine_builds_it_at_its_start(
    plan: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    product = TinyProduct()
    for index, image in enumerate((product.good(11), product.defective(12))):
        cv2.imwrite(str(tmp_path / f"part{index}.png"), image)
    words = ["--camera", str(tmp_path / "part*.png"), "--engine", str(plan), "--publish", "none", "--json"]
    for built in (True, False):
        assert run([*words, "--runtime", "cuda"]) == 0
        captured = capsys.readouterr()
        (line,) = captured.out.splitlines()
        summary = json.loads(line)
        assert (summary["ok"], summary["ng"]) == (1, 1)
        assert "cuda: TensorRT 10.3.0 fp32 on Emulated" in captured.err
        assert "golden frames: 3 score as recorded" in captured.err
        assert ("building the engine: TensorRT 10.3.0" in captured.err) == built
        assert (str(cache_folder()) in captured.err) == built
    assert len(world.built) == 1
    (where,) = engines(plan, world)
    assert where is not None
    assert where.is_relative_to(cache_folder())


def test_scores_that_moved_refuse_the_engine(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    moved = write_tiny_bundle(tmp_path / "moved.plan", golden_factor=1.1).path
    content = moved.read_bytes()
    assert main([str(moved)]) == 9
    assert "edge-build --rebuild" in capsys.readouterr().err
    assert moved.read_bytes() == content
    assert engines(moved, world) == []


def test_out_leaves_the_bundle_as_it_is(plan: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    content, out = plan.read_bytes(), plan.with_name("with-engine.plan")
    assert main([str(plan), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: engine built")
    assert plan.read_bytes() == content
    assert engines(out, world) == [out]


def test_into_the_cache_and_from_there_into_the_bundle(
    plan: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    content = plan.read_bytes()
    assert main([str(plan), "--into-cache"]) == 0
    assert capsys.readouterr().out.startswith(str(cache_folder()))
    assert plan.read_bytes() == content
    assert main([str(plan)]) == 0
    assert capsys.readouterr().out.startswith(f"{plan}: engine was there already")
    assert len(world.built) == 1
    assert engines(plan, world)[0] == plan


def test_a_signed_bundle_stays_what_was_signed(plan: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(plan)]) == 0
    sign_bundle(plan, generate(Kind.SIGN, "us"))
    content = plan.read_bytes()
    capsys.readouterr()
    # The engine in it is not covered by the signature: it is not used, and another one is built.
    assert main([str(plan)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{cache_folder()}")
    assert "engine built" in captured.out
    assert "the bundle is signed" in captured.err
    assert plan.read_bytes() == content
    with Bundle.open(plan) as bundle:
        check_signature(bundle)
    assert len(world.built) == 2


def test_a_bundle_that_cannot_be_written(
    plan: Path, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import edge.bundle

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(edge.bundle, "atomic_write", read_only)
    assert main([str(plan)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(str(cache_folder()))
    assert "Read-only file system: the engine goes into the cache" in captured.err
    # Asked for by name, it is an error.
    assert main([str(plan), "--out", str(plan.with_name("out.plan"))]) == 3


def test_nowhere_to_keep_it(plan: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cache_folder().parent.mkdir()
    cache_folder().write_text("a file where a folder should be")
    assert main([str(plan), "--into-cache"]) == 1
    assert "cannot be kept" in capsys.readouterr().err


def test_with_an_accelerator(plan: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.dla_cores = 2
    assert main([str(plan)]) == 0
    assert main([str(plan), "--dla", "1"]) == 0
    assert "sm_87 Emulated, DLA 1" in capsys.readouterr().out
    assert [asked["dla"] for asked in world.built] == [None, 1]
    with Bundle.open(plan) as bundle, Inspector(bundle) as inspector:
        assert "with DLA 1" in inspector.describe
    assert main([str(plan), "--dla", "2"]) == 6


def test_another_model_in_its_place_meanwhile(plan: Path, world: World, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other.plan", uses_prompt=False)
    world.on_step = lambda step: os.replace(other.path, plan) if step == 1 else None
    assert main([str(plan)]) == 3
    with Bundle.open(plan) as bundle:
        assert not bundle.manifest.engines


def test_no_golden_frames_is_said(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", golden_frames=0).path
    assert main([str(path)]) == 0
    assert "no golden frames to check the engine by" in capsys.readouterr().err


def test_an_interrupted_build_keeps_nothing(plan: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    import signal
    import threading

    def on_step(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.001)

    world.on_step, world.steps = on_step, 1_000_000
    content = plan.read_bytes()
    assert main([str(plan)]) == 130
    assert plan.read_bytes() == content
    assert engines(plan, world) == []


def test_machines_without_a_gpu(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, World(), devices=0)
    assert main([str(plan)]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "finds no GPU" in captured.err


def test_arguments(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--dla x", "--dla 10", "--level 6", "--workspace 0", "--out a --into-cache"):
        with pytest.raises(SystemExit) as ended:
            main([str(plan), *words.split()])
        assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "exit codes" in capsys.readouterr().out
