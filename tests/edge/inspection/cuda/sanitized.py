"""What `test_sanitized.py` runs with the sanitizers loaded: every kernel once, or one kernel of a text with a fault.

LD_PRELOAD=libasan.so python -m tests.edge.inspection.cuda.sanitized [FOLDER KERNEL]
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from tests.edge.inspection.cuda import fibers
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.stages import run_all


def main() -> None:
    if len(sys.argv) == 1:
        gpu = EmulatedGpu(flags=fibers.SANITIZED)
        run_all(gpu, ("prepare", "hog", "nearest", "compare"))
    else:
        gpu = EmulatedGpu(kernels=Path(sys.argv[1]), flags=fibers.SANITIZED)
        stream, out = gpu.stream(), gpu.allocate(4)
        gpu.launch(gpu.kernel("probe", sys.argv[2]), 1, 8, [ctypes.c_int32(8), ctypes.c_void_p(out.address)], stream)
        stream.synchronize()
    gpu.close()
    print("all well")


if __name__ == "__main__":
    main()
