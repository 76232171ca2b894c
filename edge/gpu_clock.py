"""How fast the GPU runs and may run: clocks, power and power mode, from NVML or, on a Jetson, from Linux.

Whatever is not told is None or empty: no driver has to be there.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIBRARY = "libnvidia-ml.so.1"

_ROOT = Path("/")
# Numbers of NVML's header.
_SM_CLOCK, _MEMORY_CLOCK, _GPU_SENSOR = 1, 2, 0
#: Names of the GPU among the devices whose clock Linux changes: by itself, or Jetson's chips from TX2 to Thor.
_DEVFREQ = re.compile(r"gpu|gp10b|gv11b|ga10b|gb10b")


@dataclass(frozen=True)
class GpuClock:
    """The first GPU: clocks in MHz, power in watts, temperature in degrees Celsius, and a Jetson's power mode."""

    mhz: int | None = None
    highest_mhz: int | None = None
    memory_mhz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    celsius: int | None = None
    mode: str = ""

    @property
    def describe(self) -> str:
        """One line for people."""
        known = [
            f"clock {self.mhz} of {self.highest_mhz or '?'} MHz" if self.mhz is not None else "clock not readable",
            f"memory {self.memory_mhz} MHz" if self.memory_mhz is not None else "",
            _watts(self.power_w, self.power_limit_w),
            f"{self.celsius} °C" if self.celsius is not None else "",
            f"power mode {self.mode}" if self.mode else "power mode not readable" if self.power_w is None else "",
        ]
        return ", ".join(filter(None, known))

    def as_dict(self) -> dict[str, object]:
        """Return all of it by name."""
        return asdict(self)


def gpu_clock(library: str = LIBRARY, root: Path = _ROOT) -> GpuClock:
    """Return what the driver says of the first GPU, else what Linux says of a Jetson's."""
    with _nvml(library) as nvml:
        found = None if nvml is None else _from_driver(nvml)
    mode = _power_mode(root)
    if found is not None and found.mhz is not None:
        return GpuClock(**{**asdict(found), "mode": mode})
    mhz, highest = _devfreq(root)
    return GpuClock(mhz=mhz, highest_mhz=highest, mode=mode)


@contextmanager
def _nvml(library: str) -> Iterator[Any]:
    try:
        nvml = ctypes.CDLL(library)
        ready = nvml.nvmlInit_v2() == 0
    except (OSError, AttributeError):
        yield None
        return
    try:
        yield nvml if ready else None
    finally:
        nvml.nvmlShutdown()


def _from_driver(nvml: Any) -> GpuClock:
    device = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(device)):
        return GpuClock()

    def ask(function: str, *which: int) -> int | None:
        value = ctypes.c_uint()
        try:
            failed = getattr(nvml, function)(device, *map(ctypes.c_uint, which), ctypes.byref(value))
        except AttributeError:
            return None
        return None if failed else value.value

    power, limit = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetEnforcedPowerLimit")
    return GpuClock(
        mhz=ask("nvmlDeviceGetClockInfo", _SM_CLOCK),
        highest_mhz=ask("nvmlDeviceGetMaxClockInfo", _SM_CLOCK),
        memory_mhz=ask("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        celsius=ask("nvmlDeviceGetTemperature", _GPU_SENSOR),
    )


def _devfreq(root: Path) -> tuple[int | None, int | None]:
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _DEVFREQ.search(folder.name):
            now, highest = (_read(folder / name).strip() for name in ("cur_freq", "max_freq"))
            return _mhz(now), _mhz(highest)
    return None, None


def _power_mode(root: Path) -> str:
    """Return the name of nvpmodel's mode, or its number where that has no name."""
    number = re.match(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if number is None:
        return ""
    models = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _read(root / "etc/nvpmodel.conf"))
    names = {int(identity): str(name) for identity, name in models}
    return names.get(int(number[1]), str(int(number[1])))


def _mhz(hertz: str) -> int | None:
    return int(hertz) // 1_000_000 if hertz.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _watts(power: float | None, limit: float | None) -> str:
    if power is None:
        return ""
    return f"{power:.0f} W" if limit is None else f"{power:.0f} of {limit:.0f} W"
