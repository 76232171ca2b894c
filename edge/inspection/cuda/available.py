"""What the CUDA runtime needs of a machine, asked in an order in which no answer can crash the process."""

from __future__ import annotations

from edge.cuda_driver import LIBRARY
from edge.errors import RuntimeUnavailableError
from edge.inspection.cuda.compile import choose
from edge.inspection.cuda.compilers import compilers
from edge.inspection.cuda.tensorrt_engine import load_tensorrt, require_driver


def require_cuda(library: str = LIBRARY) -> None:
    """Return where driver, GPU, TensorRT, PyCUDA and a compiler for the kernels are all there.

    Raises:
        RuntimeUnavailableError: the first of them that is not.
    """
    driver = require_driver(library)
    load_tensorrt(library)
    require_pycuda()
    choose(compilers(), driver.devices[0].compute_capability, driver.cuda)


def require_pycuda() -> str:
    """Return PyCUDA's version; to be asked after the driver.

    Raises:
        RuntimeUnavailableError: it cannot be imported.
    """
    try:
        import pycuda
        import pycuda.driver
    except (ImportError, OSError) as error:
        raise RuntimeUnavailableError(
            f"PyCUDA cannot be imported: {error}", "docs/jetson.md says how to install it, or use --runtime portable"
        ) from error
    return str(pycuda.VERSION_TEXT)
