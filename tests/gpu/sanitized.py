"""Every kernel of the CUDA runtime a few times, for compute-sanitizer to watch; needs PyCUDA alone.

compute-sanitizer --tool memcheck python -m tests.gpu.sanitized redi.plan [redi.plan …]
"""

from __future__ import annotations

import sys

import numpy as np

from edge.bundle import Bundle
from edge.frames import PixelFormat
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.cuda.device import Gpu
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.ports import core_outputs
from tests.edge.inspection.cuda.cases import PRODUCT, place
from tests.gpu.device_memory import ConstantEngine

_FORMATS = (PixelFormat.BGR8, PixelFormat.MONO8, PixelFormat.NV12, PixelFormat.BAYER_GBRG)


def inspect(path: str, gpu: Gpu) -> None:
    """Inspect frames of every layout, with and without corrections."""
    rng = np.random.default_rng(0)
    gains = rng.integers(2048, 6000, (80, 96)).astype(np.uint16)
    with Bundle.open(path) as bundle:
        outputs = core_outputs(bundle.manifest.model)
        for corrections in (NOTHING, Corrections(None, gains)):
            runtime = CudaRuntime(
                bundle, gpu=gpu, engine=ConstantEngine(gpu, outputs), corrections=corrections, prompt_bytes=5000
            )
            slots = runtime.make_slots(2, 80 * 96 * 3)
            for index in range(2 * len(_FORMATS)):
                pixel_format = _FORMATS[index // 2]
                image = PRODUCT.good(index)
                if pixel_format is not PixelFormat.BGR8:
                    image = rng.integers(0, 256, pixel_format.shape(80, 96), np.uint8)
                slot = place(slots[index % 2], image, pixel_format)
                runtime.stage(slot)
                outcome = runtime.run(slot, 0.5)
                assert np.isfinite(outcome.score)
            runtime.close()


def main() -> int:
    """Inspect with each bundle."""
    from edge.inspection.cuda.pycuda_device import own_gpu

    gpu = own_gpu()
    for path in sys.argv[1:]:
        inspect(path, gpu)
    gpu.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
