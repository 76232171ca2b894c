"""What this machine is: its processor, memory and clock, as Linux tells it.  Whatever is not told is None or empty."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

_PROC, _SYS = Path("/proc"), Path("/sys")

#: What `adjtimex` returns where nothing keeps the clock right (TIME_ERROR).
_CLOCK_UNSYNCHRONISED = 5
#: The `nice` value of what may wait: as high as may be without starving.
_BACKGROUND = 15
#: More than any `struct timex`; zeroed, it asks and changes nothing.
_TIMEX_BYTES = 512


@dataclass(frozen=True)
class Clock:
    """How fast the processor runs: the governors in use, and the lowest and highest clock of its cores now, in MHz."""

    governors: tuple[str, ...]
    mhz: tuple[int, int] | None

    @property
    def describe(self) -> str:
        """One line for people."""
        governor = " and ".join(self.governors) if self.governors else "not readable"
        mhz = "not readable" if self.mhz is None else "{} to {} MHz now".format(*self.mhz)
        return f"governor {governor}, clock {mhz}"


def physical_cores() -> int:
    """Return how many cores this process may use, hyper-threads of one core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _SYS / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


def core_quota() -> float | None:
    """Return how many cores' time a container grants its processes, None where that is not limited."""
    words = _read(_SYS / "fs/cgroup/cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def cpu_model() -> str:
    """Return the processor's name, or the board's where the kernel names no processor, or the architecture."""
    named = _cpuinfo("model name") or _read(_PROC / "device-tree/model").strip("\0\n ")
    return named or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets and features of the processor under the kernel's names, such as `avx2`, `asimd`."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def memory() -> tuple[int, int]:
    """Return the memory that there is and that is available, in bytes; a container's limit counts as all there is.

    Raises:
        OSError: the kernel does not tell.
        KeyError: it tells it otherwise than Linux does.
    """
    lines = (_PROC / "meminfo").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    limit = _read(_SYS / "fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        used = _read(_SYS / "fs/cgroup/memory.current").strip()
        total = int(limit)
        available = min(available, total - int(used or 0))
    return total, available


def clock() -> Clock:
    """Return how fast the processor runs."""
    folders = sorted((_SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {_read(folder / "scaling_governor").strip() for folder in folders} - {""}
    khz = [int(text) for folder in folders if (text := _read(folder / "scaling_cur_freq").strip()).isdigit()]
    return Clock(tuple(sorted(governors)), (min(khz) // 1000, max(khz) // 1000) if khz else None)


def temperatures() -> dict[str, float]:
    """Return what the thermal zones measure, in degrees Celsius, by zone: `thermal_zone0 x86_pkg_temp`."""
    found = {}
    for zone in sorted((_SYS / "class/thermal").glob("thermal_zone[0-9]*")):
        # In thousandths.  A zone that is switched off cannot be read.
        text = _read(zone / "temp").strip()
        if text.removeprefix("-").isdigit():
            found[f"{zone.name} {_read(zone / 'type').strip()}".strip()] = int(text) / 1000
    return found


def lower_priority() -> None:
    """Let this thread yield to the process's others: on Linux each thread has a priority of its own."""
    # Where even that is forbidden, it goes on as it is.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND)


def clock_is_synchronised() -> bool | None:
    """Return whether something keeps this machine's wall clock right; None where the C library cannot say."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    return None if state < 0 else state != _CLOCK_UNSYNCHRONISED


def _cpuinfo(name: str) -> str:
    for line in _read(_PROC / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    """Return a small file of the kernel's, empty where it is not there or does not tell."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
