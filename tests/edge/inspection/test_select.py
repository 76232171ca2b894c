"""Which runtime inspects, and what is said of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.bundle import Bundle
from edge.cuda_driver import DriverError
from edge.errors import CudaError, RuntimeUnavailableError, UsageError
from edge.inspection.cuda import available, tensorrt_engine
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.inspector import Inspector
from edge.inspection.portable import PortableRuntime
from edge.inspection.select import open_runtime, usable_runtimes
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.fake_tensorrt import World, play_machine
from tests.tiny_bundle import TinyBundle


@pytest.fixture
def bundle(tiny: TinyBundle) -> Iterator[Bundle]:
    with Bundle.open(tiny.path) as opened:
        yield opened


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a driver."""

    def no_driver(library: str) -> None:
        raise DriverError("cannot be loaded: libcuda.so.1")

    monkeypatch.setattr(tensorrt_engine, "probe_driver", no_driver)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """A machine with all that the CUDA runtime needs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    world, gpu = World(), EmulatedGpu()
    play_machine(monkeypatch, world, gpu)
    yield world
    gpu.close()


@pytest.mark.usefixtures("bare")
def test_without_a_gpu(bundle: Bundle) -> None:
    assert usable_runtimes() == ("portable",)
    runtime, why = open_runtime(bundle)
    assert isinstance(runtime, PortableRuntime)
    assert why == "auto: no NVIDIA driver: cannot be loaded: libcuda.so.1"
    with pytest.raises(RuntimeUnavailableError) as refused:
        open_runtime(bundle, "cuda")
    assert refused.value.exit_code == 6
    assert refused.value.problem == "no CUDA runtime here: no NVIDIA driver: cannot be loaded: libcuda.so.1"
    assert "--runtime portable" in refused.value.hint


def test_with_a_gpu(bundle: Bundle, world: World) -> None:
    assert usable_runtimes() == ("cuda", "portable")
    for name, reason in (("auto", "auto: this machine has all that it needs"), ("cuda", "asked for")):
        runtime, why = open_runtime(bundle, name)
        assert isinstance(runtime, CudaRuntime)
        assert why == reason
        runtime.close()
    assert isinstance(open_runtime(bundle, "portable")[0], PortableRuntime)
    # Two cameras and one engine.
    with Inspector(bundle) as first, Inspector(bundle, share=first):
        pass
    assert len(world.built) == 1


def test_runtimes_of_one_kind_share(bundle: Bundle, world: World) -> None:
    portable, _ = open_runtime(bundle, "portable", threads=1)
    cuda, _ = open_runtime(bundle, share=portable)
    assert isinstance(cuda, CudaRuntime)
    again, _ = open_runtime(bundle, "portable", threads=1, share=cuda)
    assert isinstance(again, PortableRuntime)
    twin, _ = open_runtime(bundle, share=cuda)
    assert isinstance(twin, CudaRuntime)
    assert twin._shared is cuda._shared
    twin.close()
    cuda.close()


def test_what_fails_on_a_gpu_is_no_reason_to_be_slow(
    bundle: Bundle, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.build_fails = "out of memory"
    with pytest.raises(CudaError, match="out of memory"):
        open_runtime(bundle)

    # What the CUDA runtime does not do is: another one does it.
    def refuse(*arguments: object, **more: object) -> None:
        raise RuntimeUnavailableError("prompts are drawn", "use --runtime portable")

    monkeypatch.setattr("edge.inspection.cuda.runtime.CudaRuntime.__init__", refuse)
    runtime, why = open_runtime(bundle)
    assert isinstance(runtime, PortableRuntime)
    assert why == "auto: prompts are drawn"
    with pytest.raises(RuntimeUnavailableError, match="prompts are drawn"):
        open_runtime(bundle, "cuda")


def test_every_piece_that_is_missing_is_named(bundle: Bundle, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*asked: object) -> None:
        raise RuntimeUnavailableError("no CUDA compiler: neither NVRTC nor nvcc")

    with monkeypatch.context() as patched:
        patched.setattr(available, "choose", no_compiler)
        assert open_runtime(bundle)[1] == "auto: no CUDA compiler: neither NVRTC nor nvcc"
    for module, words in (("pycuda", "PyCUDA cannot be imported"), ("tensorrt", "TensorRT cannot be imported")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module, None)
            assert usable_runtimes() == ("portable",)
            assert open_runtime(bundle)[1].startswith(f"auto: {words}")
            with pytest.raises(RuntimeUnavailableError, match=words):
                open_runtime(bundle, "cuda")


def test_bf16_is_of_the_cpu(bundle: Bundle, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def remember(self: PortableRuntime, bundle: Bundle, *, precision: str, **more: object) -> None:
        asked.append(precision)

    monkeypatch.setattr(PortableRuntime, "__init__", remember)
    assert open_runtime(bundle, precision="bf16")[1].startswith("auto: bf16 was asked for")
    assert asked == ["bf16"]
    with pytest.raises(UsageError, match="--runtime cuda with --precision bf16"):
        open_runtime(bundle, "cuda", precision="bf16")


def test_unknown_names(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="'quantum'"):
        open_runtime(bundle, "quantum")


def test_nothing_of_cuda_is_loaded_before_the_driver_answers(tiny: TinyBundle) -> None:
    program = f"""
import sys
from edge.cuda_driver import DriverError
from edge.inspection.cuda import tensorrt_engine
def no_driver(library): raise DriverError("none")
tensorrt_engine.probe_driver = no_driver
class Trap:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("tensorrt", "pycuda"), name
sys.meta_path.insert(0, Trap())
from edge.bundle import Bundle
from edge.inspection.select import open_runtime
with Bundle.open({str(tiny.path)!r}) as bundle:
    print(open_runtime(bundle)[1])
assert "edge.inspection.cuda.runtime" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "auto: no NVIDIA driver: none\n", "")
