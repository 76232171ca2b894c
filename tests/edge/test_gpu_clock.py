from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge.gpu_clock import GpuClock, gpu_clock

_NVML = """
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)0x7fff00000001; return index; }
static int good(void *device) { return device == (void *)0x7fff00000001 ? 0 : 1; }
int nvmlDeviceGetClockInfo(void *d, unsigned kind, unsigned *mhz) { *mhz = 1000 * kind + 305; return good(d); }
int nvmlDeviceGetMaxClockInfo(void *d, unsigned kind, unsigned *mhz) { *mhz = 1980 * kind; return good(d); }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 71500; return good(d); }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *mw) { return 3; }
"""


def nvml(folder: Path, init: int = 0) -> str:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler")
    library = folder / f"libnvml{init}.so"
    words = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-x", "c", "-", "-o", str(library)]
    subprocess.run(words, input=_NVML, text=True, check=True)
    return str(library)


def jetson(root: Path) -> Path:
    for name, hertz in (("15340000.vic", 115200000), ("17000000.gpu", 612000000)):
        folder = root / "sys/class/devfreq" / name
        folder.mkdir(parents=True)
        (folder / "cur_freq").write_text(f"{hertz}\n")
        (folder / "max_freq").write_text("1300500000\n")
    (root / "var/lib/nvpmodel").mkdir(parents=True)
    (root / "var/lib/nvpmodel/status").write_text("pmode:0002 fmode:quiet\n")
    (root / "etc").mkdir()
    (root / "etc/nvpmodel.conf").write_text("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n")
    return root


def test_the_driver_is_asked(tmp_path: Path) -> None:
    found = gpu_clock(nvml(tmp_path), tmp_path)
    assert found == GpuClock(mhz=1305, highest_mhz=1980, memory_mhz=2305, power_w=71.5)
    assert found.describe == "clock 1305 of 1980 MHz, memory 2305 MHz, 72 W"


def test_a_jetson_tells_its_clock_and_mode(tmp_path: Path) -> None:
    found = gpu_clock("libnone.so", jetson(tmp_path))
    assert found == GpuClock(mhz=612, highest_mhz=1300, mode="MODE_30W")
    assert found.describe == "clock 612 of 1300 MHz, power mode MODE_30W"
    (tmp_path / "etc/nvpmodel.conf").unlink()
    # A driver's library that has nothing to say of this GPU.
    assert gpu_clock(nvml(tmp_path, init=9), tmp_path).mode == "2"


def test_a_machine_without_a_gpu_tells_nothing(tmp_path: Path) -> None:
    assert gpu_clock("libnone.so", tmp_path) == GpuClock()
    assert "not readable" in GpuClock().describe
