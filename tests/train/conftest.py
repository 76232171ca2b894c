from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from train.backbones import ResNet18

# The inputs are tiny, and on a busy machine threads that wait for each other cost many times what they save.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small good photographs: a bright square whose place and tone vary a little on a textured ground."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 110, (72, 80, 3), dtype=np.uint8)
    for number in range(10):
        image = ground.copy()
        x, y = 20 + int(rng.integers(-3, 4)), 24 + int(rng.integers(-3, 4))
        cv2.rectangle(image, (x, y), (x + 30, y + 24), (180 + number, 190, 200), -1)
        cv2.imwrite(str(folder / f"good{number}.png"), image)
    return folder


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folded ResNet-18 state dict with random, well-scaled weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(ResNet18().state_dict(), path)
    return path
