from __future__ import annotations

import grp
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest

import edge.doctor
import edge.machine
from edge.bundle import Bundle, update_bundle
from edge.commands.doctor import main
from edge.doctor import (
    Finding,
    State,
    check_cameras,
    check_clock,
    check_endpoint,
    check_engine,
    check_folders,
    check_gpu,
    check_memory,
    check_packages,
    check_processor,
    examine,
)
from edge.inspection.cuda import available
from edge.inspection.cuda.device import DeviceFacts
from edge.inspection.cuda.engines import machine_key, member_name
from tests.edge.inspection.cuda.fake_tensorrt import World, make_tensorrt
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

PACKAGES = {"numpy": "NumPy", "msgspec": "msgspec", "openvino": "OpenVINO", "cv2": "OpenCV", "zmq": "ZeroMQ"}
ROWS = {
    *("system", "Python", "native kernels", *PACKAGES.values(), "processor", "cores", "memory", "NVIDIA driver"),
    *("--runtime auto", "PyCUDA", "TensorRT", "cameras", "endpoint", "temporary folder", "current folder"),
    *("power", "wall clock"),
}


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_every_row_is_there_and_this_machine_can_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDI_ISA", raising=False)
    assert main(["--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["ok"] is True
    states = {row["check"]: row["state"] for row in report["checks"]}
    assert states.keys() >= ROWS
    assert all(states[name] == "ok" for name in ("native kernels", *PACKAGES.values()))


def test_the_table_keeps_each_row_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ROWS:
        assert sum(f"│ {name} " in line for line in lines) == 1, name
    assert any("--runtime auto" in line and ("portable: " in line or "cuda: " in line) for line in lines)


def test_a_machine_that_lacks_everything_gets_rows_and_no_traceback() -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({list(PACKAGES)!r}))\n"
        "from edge.commands.doctor import main; sys.exit(main(['--json', '--engine', 'redi.plan']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report["ok"] is False
    problems = {row["check"] for row in report["checks"] if row["state"] == "problem"}
    assert problems == {*PACKAGES.values(), "native kernels", "bundle redi.plan"}


def test_a_package_that_breaks_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    def broken() -> None:
        raise RuntimeError("no plug-in for the CPU")

    monkeypatch.setattr(ov, "Core", broken)
    found = by_name(check_packages())
    assert found["OpenVINO"].state is State.PROBLEM
    assert "no plug-in for the CPU" in found["OpenVINO"].found
    assert found["OpenCV"].state is State.OK


def test_zeromq_without_curve_is_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import zmq

    monkeypatch.setattr(zmq, "has", lambda capability: False)
    found = by_name(check_packages())["ZeroMQ"]
    assert (found.state, found.found.endswith("CURVE missing")) == (State.NOTE, True)
    assert found.advice


def test_kernels_that_cannot_run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REDI_ISA", "quantum")
    assert main([]) == 1
    captured = capsys.readouterr()
    assert "'quantum'" in captured.out
    assert "1 problem: " in captured.err


@pytest.mark.parametrize(("group", "state"), [("_CHECKS", State.NOTE), ("_NEEDED", State.PROBLEM)])
def test_a_check_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, group: str, state: State) -> None:
    def fails() -> Iterable[Finding]:
        yield Finding("first", State.OK, "seen")
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(edge.doctor, group, (("frail", fails), *getattr(edge.doctor, group)))
    found = by_name(examine())
    assert found["first"].found == "seen"
    assert (found["frail"].state, "of all things" in found["frail"].found) == (state, True)
    assert found.keys() >= ROWS


def test_bundles(tiny: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_tiny_bundle(tmp_path / "raw.plan", calibrated=False, golden_factor=2.0).path
    none = tmp_path / "none.plan"
    expected = {tiny.path: ("ok", 0, "edge-verify"), raw: ("note", 0, "calib-threshold"), none: ("problem", 1, "")}
    for path, (state, code, advice) in expected.items():
        assert main(["--json", "--engine", str(path)]) == code
        rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
        row = rows[f"bundle {path}"]
        assert row["state"] == state
        assert advice in row["advice"]


# The driver, played by a library of a few lines: two devices, one of them integrated.

DRIVER = """
#include <string.h>
#include <stddef.h>
static int ready;
int cuInit(unsigned flags) { ready = 1; return INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return ready ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 40 ? "Desk" : "Board", size); return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device == 40 ? 24 : 8) << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int desk = device == 40;
    if (attribute == 18) *value = !desk;
    else if (attribute == 75) *value = 8;
    else if (attribute == 76) *value = desk ? 9 : 7;
    else return 1;
    return 0;
}
#ifdef NAMES
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return code == 100 ? 0 : 1; }
#endif
"""


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., str]:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler")

    def build(*defines: str, source: str = DRIVER) -> str:
        library = tmp_path / f"libcuda{len(list(tmp_path.iterdir()))}.so"
        (tmp_path / "driver.c").write_text(source)
        subprocess.run(
            [compiler, "-shared", "-fPIC", *defines, "-o", library, str(tmp_path / "driver.c")], check=True, timeout=60
        )
        return str(library)

    return build


def test_devices_are_asked_not_guessed(driver: Callable[..., str]) -> None:
    found = by_name(check_gpu(driver("-DINIT=0")))
    assert "CUDA up to 12.6" in found["NVIDIA driver"].found
    assert found["GPU 0"].found == "Desk, compute capability 8.9, 24.0 GiB, with its own memory"
    assert found["GPU 1"].found == "Board, compute capability 8.7, 8.0 GiB, integrated; the first one is used"


@pytest.mark.parametrize(
    ("defines", "word"),
    [
        (("-DINIT=100", "-DNAMES"), "cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        (("-DINIT=999", "-DNAMES"), "cuInit: error 999"),
        (("-DINIT=100",), "cuInit: error 100"),
    ],
)
def test_a_driver_that_refuses(driver: Callable[..., str], defines: tuple[str, ...], word: str) -> None:
    found = by_name(check_gpu(driver(*defines)))
    assert (found["NVIDIA driver"].state, found["NVIDIA driver"].found) == (State.NOTE, word)
    assert "GPU 0" not in found


def test_no_driver_and_strange_ones(driver: Callable[..., str], tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    for library in (str(text), str(tmp_path / "none.so"), driver(source="int cuInit(unsigned f) { return 0; }")):
        found = by_name(check_gpu(library))
        assert found["NVIDIA driver"].state is State.NOTE
        assert found["NVIDIA driver"].advice
        assert {"PyCUDA", "TensorRT", "--runtime auto"} <= found.keys()
        assert found["--runtime auto"].found.startswith("portable: no NVIDIA driver: ")


class Nvrtc13:
    """A compiler of which the driver takes code."""

    name, version, architectures = "NVRTC 13.0", (12, 6), frozenset({86, 89})


@pytest.fixture
def gpu_packages(monkeypatch: pytest.MonkeyPatch) -> World:
    """TensorRT, PyCUDA and a compiler, all played."""
    world = World()
    pycuda = ModuleType("pycuda")
    pycuda.VERSION_TEXT, pycuda.driver = "2026.1", ModuleType("pycuda.driver")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(world))
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda.driver)
    monkeypatch.setattr(available, "compilers", lambda: [Nvrtc13()])
    monkeypatch.setattr("edge.inspection.cuda.compilers.compilers", lambda: [Nvrtc13()])
    return world


def test_a_machine_with_all_that_cuda_needs(driver: Callable[..., str], gpu_packages: World) -> None:
    found = by_name(check_gpu(driver("-DINIT=0")))
    rows = {name: row.found for name, row in found.items()}
    assert rows["TensorRT"] == "10.3.0"
    assert rows["PyCUDA"] == "2026.1"
    assert rows["CUDA compiler"] == "NVRTC 13.0, makes code for sm_89"
    assert rows["--runtime auto"].startswith("cuda: ")
    assert all(row.state is State.OK for row in found.values())


@pytest.mark.parametrize(
    ("missing", "row", "advice"),
    [
        ("tensorrt", "TensorRT", "JetPack"),
        ("pycuda", "PyCUDA", "docs/jetson.md"),
        ("pycuda.driver", "PyCUDA", "docs/jetson.md"),
        ("compiler", "CUDA compiler", "pip install"),
    ],
)
def test_what_cuda_lacks_is_a_row_and_the_reason(
    driver: Callable[..., str],
    gpu_packages: World,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    row: str,
    advice: str,
) -> None:
    if missing == "compiler":
        monkeypatch.setattr(Nvrtc13, "version", (14, 0))
    else:
        monkeypatch.setitem(sys.modules, missing, None)
        if missing == "pycuda.driver":
            monkeypatch.delattr(sys.modules["pycuda"], "driver")
    found = by_name(check_gpu(driver("-DINIT=0")))
    assert found[row].state is State.NOTE
    assert advice in found[row].advice
    assert found["--runtime auto"].found == f"portable: {found[row].found}"
    # All that is there is still told.
    assert sum(each.state is State.NOTE for each in found.values()) == 1


def test_whether_the_bundles_engine_fits(
    driver: Callable[..., str], gpu_packages: World, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = driver("-DINIT=0")
    (row,) = check_engine(bundle_path, library)
    assert (row.state, row.found) == (
        State.NOTE,
        "none for TensorRT 10.3.0, fp32, sm_89 Desk; the bundle has 0 in all",
    )
    assert f"edge-build {bundle_path}" in row.advice
    with Bundle.open(bundle_path) as bundle:
        key = machine_key(DeviceFacts("Desk", (8, 9), False, 1), "10.3.0", "fp32")
        member = member_name(bundle, key)
    update_bundle(bundle_path, {member: b"an engine"}, {member: key})
    (row,) = check_engine(bundle_path, library)
    assert (row.state, row.found) == (State.OK, f"for TensorRT 10.3.0, fp32, sm_89 Desk, in {bundle_path}")
    # Without a GPU there is nothing to say.
    assert list(check_engine(bundle_path, str(tmp_path / "none.so"))) == []


def test_cameras_and_the_group_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.state for finding in check_cameras(tmp_path)] == [State.NOTE]
    for name in ("video0", "video1"):
        (tmp_path / name).touch()
    (found,) = check_cameras(tmp_path)
    assert (found.state, "video1" in found.found) == (State.OK, True)
    # Played, as root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "video1")
    usable, closed = check_cameras(tmp_path)
    assert (usable.state, "video0" in usable.found, "video1" in usable.found) == (State.OK, True, False)
    assert (closed.state, "video1" in closed.found) == (State.NOTE, True)
    group = grp.getgrgid((tmp_path / "video1").stat().st_gid).gr_name
    assert f"usermod -aG {group} " in closed.advice


def test_the_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        (found,) = check_endpoint(endpoint)
        assert (found.state, "in use" in found.found, "--publish" in found.advice) == (State.NOTE, True, True)
    (found,) = check_endpoint(endpoint)
    assert (found.state, found.found) == (State.OK, f"{endpoint} free")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = by_name(check_folders())
    assert (found["temporary folder"].state, found["current folder"].state) == (State.OK, State.NOTE)
    monkeypatch.setenv("TMPDIR", str(gone))
    monkeypatch.chdir(tmp_path)
    found = by_name(check_folders())
    assert (found["temporary folder"].state, found["current folder"].state) == (State.NOTE, State.OK)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert by_name(check_folders())["current folder"].state is State.NOTE


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Another machine's /proc and /sys, of the given files."""
    monkeypatch.setattr(edge.machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(edge.machine, "_SYS", tmp_path / "sys")

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def test_a_board_without_a_processor_name(machine: Callable[..., None]) -> None:
    cpuinfo = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"
    machine({"proc/cpuinfo": cpuinfo, "proc/device-tree/model": "Some Board\0"})
    found = by_name(check_processor())["processor"].found
    assert found.startswith("Some Board (")
    assert found.endswith(": asimd asimddp")


def test_a_container_that_is_granted_little(machine: Callable[..., None]) -> None:
    meminfo = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"
    quota = {"proc/cpuinfo": "", "proc/meminfo": meminfo, "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    machine(quota)
    assert by_name(check_memory())["memory"].found == "16.0 GiB, 8.0 GiB available"
    limit, used = str(1 << 30), str(1 << 29)
    machine({"sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/memory.current": used})
    found = by_name(check_memory())["memory"]
    assert (found.state, found.found) == (State.NOTE, "1.0 GiB, 0.5 GiB available")
    found = by_name(check_processor())["cores"]
    assert (found.state, "time of 0.5 granted" in found.found) == (State.NOTE, True)
    machine({"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert by_name(check_memory())["memory"].state is State.OK
    assert by_name(check_processor())["cores"].state is State.OK


def test_governor_and_clock(machine: Callable[..., None]) -> None:
    assert by_name(check_clock())["power"].found == "governor not readable, clock not readable"
    cores = {
        f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}": text
        for core, mhz in ((0, 1200), (1, 3400))
        for name, text in (("scaling_governor", "performance\n"), ("scaling_cur_freq", f"{mhz}000\n"))
    }
    machine(cores)
    found = by_name(check_clock())["power"]
    assert (found.state, found.found) == (State.OK, "governor performance, clock 1200 to 3400 MHz now")
    machine({"sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n"})
    found = by_name(check_clock())["power"]
    assert (found.state, "performance and powersave" in found.found) == (State.NOTE, True)
    assert "cpupower" in found.advice


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "exit codes" in capsys.readouterr().out
