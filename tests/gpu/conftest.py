"""A real GPU: tests here need any that CUDA runs on, PyTorch and PyCUDA, and neither a network nor TensorRT.

python -m pytest -m gpu tests/gpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.errors import RuntimeUnavailableError
from edge.inspection.cuda.device import Gpu
from tests.edge.inspection.cuda.cases import Reference
from tests.tiny_bundle import TinyBundle, write_tiny_bundle


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The process's own device; tests that need it are skipped where there is none."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    from edge.inspection.cuda.pycuda_device import own_gpu

    try:
        device = own_gpu()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    device.make_current()
    return device


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A bundle whose prompts are float16, as a GPU keeps them."""
    return write_tiny_bundle(tmp_path_factory.mktemp("half") / "redi.plan", bank_dtype=np.float16)


@pytest.fixture(scope="session")
def reference(half: TinyBundle) -> Reference:
    return Reference(half.path)


@pytest.fixture
def root() -> Path:
    """Where the project is."""
    return Path(__file__).parents[2]
