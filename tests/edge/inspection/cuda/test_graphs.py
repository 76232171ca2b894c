"""Recording graphs through the driver's own calls, on the driver that has no device; and what PyCUDA is asked for."""

from __future__ import annotations

import ast
import ctypes
import inspect
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import CudaError
from edge.inspection.cuda import pycuda_device
from edge.inspection.cuda.graphs import DriverGraphs
from tests.edge.inspection.cuda.pycuda_names import PYCUDA

HERE = Path(__file__).parent
CONTEXT, STREAM, GRAPH, READY_GRAPH = 1, 4, 8, 9


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Of another name than the driver's, or the whole process would take it for one.
    made = tmp_path_factory.mktemp("stub") / "libstub_cuda.so"
    words = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libstub_cuda.so"]
    subprocess.run([*words, str(HERE / "stub_cuda.c"), "-o", str(made)], check=True)
    return made


@pytest.fixture
def stub(path: Path) -> Iterator[ctypes.CDLL]:
    library = ctypes.CDLL(str(path))
    context = ctypes.c_void_p()
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert library.cuCtxPushCurrent_v2(context) == 0
    yield library
    while library.stub_depth():
        library.cuCtxPopCurrent_v2(ctypes.byref(context))
    library.cuDevicePrimaryCtxRelease_v2(0)


@pytest.fixture
def graphs(path: Path) -> DriverGraphs:
    return DriverGraphs(str(path))


@pytest.fixture
def stream(stub: ctypes.CDLL) -> int:
    made = ctypes.c_void_p()
    assert stub.cuStreamCreate(ctypes.byref(made), 1) == 0
    assert made.value
    return made.value


def test_a_graph_is_recorded_launched_and_freed(stub: ctypes.CDLL, graphs: DriverGraphs, stream: int) -> None:
    memory = ctypes.c_ulonglong()
    assert stub.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(8)) == 0
    view = (ctypes.c_uint8 * 8).from_address(memory.value)
    view[:] = [7] * 8

    def work() -> None:
        assert stub.cuMemsetD8Async(memory, 0, ctypes.c_size_t(8), ctypes.c_void_p(stream)) == 0

    graph = graphs.capture(stream, work)
    assert list(view) == [7] * 8
    assert (stub.stub_live(GRAPH), stub.stub_live(READY_GRAPH)) == (0, 1)
    graphs.launch(graph, stream)
    assert list(view) == [0] * 8
    graphs.free(graph)
    assert stub.stub_live(READY_GRAPH) == 0
    with pytest.raises(CudaError, match="cuGraphLaunch"):
        graphs.launch(graph, stream)


def test_what_the_work_raises_comes_through_and_the_stream_goes_on(
    stub: ctypes.CDLL, graphs: DriverGraphs, stream: int
) -> None:
    def stops() -> None:
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        graphs.capture(stream, stops)
    assert stub.stub_live(GRAPH) == 0
    graphs.free(graphs.capture(stream, lambda: None))


@pytest.mark.parametrize("name", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags", "cuStreamEndCapture"])
def test_the_drivers_errors_are_named(stub: ctypes.CDLL, graphs: DriverGraphs, stream: int, name: str) -> None:
    before = stub.stub_live(READY_GRAPH)
    stub.stub_fail(name.encode(), 719, 0)
    with pytest.raises(CudaError, match=f"{name}: CUDA_ERROR_LAUNCH_FAILED"):
        graphs.capture(stream, lambda: None)
    assert (stub.stub_live(GRAPH), stub.stub_live(READY_GRAPH)) == (0, before)
    # Where it was the ending that failed, the stub's stream records on.
    graph = ctypes.c_void_p()
    if stub.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph)) == 0:
        stub.cuGraphDestroy(graph)


def test_no_driver() -> None:
    with pytest.raises(CudaError, match=r"libabsent\.so\.1 cannot be loaded"):
        DriverGraphs("libabsent.so.1")


def test_pycuda_is_asked_for_nothing_else() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(pycuda_device)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self._cuda", "pycuda.driver")
    }
    # What is reached through another name is a member.
    assert used <= PYCUDA.keys()
    assert used >= {name for name, members in PYCUDA.items() if not members}
