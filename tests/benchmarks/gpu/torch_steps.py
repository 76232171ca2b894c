"""The steps of a frame as one would write them in PyTorch, and a core of a usual size."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge.manifest import ModelSpec

Core: TypeAlias = "Callable[[dict[str, Tensor]], dict[str, Tensor]]"


def prepare(frame: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """uint8 BGR `(H, W, 3)` → normalised `(1, 3, side, side)` and grey `(1, 1, side, side)`."""
    rgb = frame.permute(2, 0, 1)[None].flip(1).float() / 255
    small = F.interpolate(rgb, size=(side, side), mode="area")
    weights = torch.tensor([0.299, 0.587, 0.114], device=frame.device).view(1, 3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406], device=frame.device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=frame.device).view(1, 3, 1, 1)
    return (small - mean) / std, (small * weights).sum(1, keepdim=True)


def hog(grey: Tensor, orientations: int = 9, cell: int = 8) -> Tensor:
    """Grey → histograms of oriented gradients `(1, n, h, w)`, each block of 2 x 2 cells normalised."""
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    magnitude = torch.hypot(across, down)
    angle = (torch.arange(orientations, device=grey.device) + 0.5) * math.pi / orientations
    along = (across * angle.cos().view(1, -1, 1, 1) + down * angle.sin().view(1, -1, 1, 1)).abs()
    share = (along - magnitude * math.cos(math.pi / orientations)).clamp_min(0)
    votes = share * (magnitude / (share.sum(1, keepdim=True) + 1e-20))
    cells = F.avg_pool2d(votes, cell)
    blocks = torch.cat([cells[..., y : y - 1 or None, x : x - 1 or None] for y in (0, 1) for x in (0, 1)], 1)
    first = blocks * torch.rsqrt((blocks * blocks).sum(1, keepdim=True) + 0.05**2)
    clipped = first.clamp_max(0.2)
    second = clipped * torch.rsqrt((clipped * clipped).sum(1, keepdim=True) + 0.05**2)
    parts = second.unflatten(1, (4, orientations))
    total, count = torch.zeros_like(cells), torch.zeros_like(cells[:, :1])
    for index, (y, x) in enumerate((y, x) for y in (0, 1) for x in (0, 1)):
        total[..., y : y - 1 or None, x : x - 1 or None] += parts[:, index]
        count[..., y : y - 1 or None, x : x - 1 or None] += 1
    return total / count


def compare(fx: list[Tensor], fy: list[Tensor], side: int, sigma: float = 4.0, top_k: int = 100) -> Tensor:
    """Features → anomaly map, mask and score."""
    total = torch.zeros(1, 1, side, side, device=fx[0].device)
    for a, b in zip(fx, fy, strict=True):
        distance = 1 - F.cosine_similarity(a, b, dim=1)[:, None]
        total += F.interpolate(distance, size=(side, side), mode="bilinear", align_corners=False)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=total.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    smooth = F.conv2d(F.pad(total, (radius, radius, 0, 0), mode="reflect"), kernel.view(1, 1, 1, -1))
    smooth = F.conv2d(F.pad(smooth, (0, 0, radius, radius), mode="reflect"), kernel.view(1, 1, -1, 1))
    bits = (smooth > 0.5).view(-1, 8).to(torch.uint8)
    packed = (bits << torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    return smooth.flatten().topk(top_k).values.mean() + packed[0] * 0


def torch_rows(spec: ModelSpec, frame: tuple[int, int], repeats: int, device: str = "cuda") -> dict[str, float]:
    """Return PyTorch's median time for each step, in ms, as a CUDA graph where there is a GPU."""
    side = spec.input.height
    pixels = torch.randint(0, 256, (*frame, 3), dtype=torch.uint8, device=device)
    _, grey = prepare(pixels, side)
    fx = [torch.randn(1, *scale, device=device) for scale in spec.compare.scales]
    fy = [torch.randn(1, *scale, device=device) for scale in spec.compare.scales]
    steps: dict[str, Callable[[], object]] = {
        "prepare": lambda: prepare(pixels, side),
        "hog": lambda: hog(grey),
        "compare": lambda: compare(fx, fy, side),
    }
    return {name: _ms(step, repeats, device) for name, step in steps.items()}


def _ms(step: Callable[[], object], repeats: int, device: str) -> float:
    cuda: Any = torch.cuda
    with torch.no_grad():
        if device == "cpu":
            step()
            return math.nan
        for _ in range(3):
            step()
        times = []
        for _ in range(repeats):
            begun, ended = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            begun.record()
            step()
            ended.record()
            ended.synchronize()
            times.append(begun.elapsed_time(ended))
    return median(times)


class _Stage(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1)
        self.rest = nn.ModuleList(nn.Conv2d(out, out, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer in self.rest:
            x = x + F.relu(layer(x))
        return x


class _Trunk(nn.Module):
    """As many multiplications as the first three layers of a ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 4, 3)
        self.stages = nn.ModuleList([_Stage(64, 64, 1), _Stage(64, 128, 2), _Stage(128, 256, 2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.stem(x))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


def make_core(spec: ModelSpec, device: str = "cuda") -> Core:
    """Return a float16 network with the model's inputs and outputs, of the size of two ResNet-18."""
    torch.manual_seed(0)
    kind = torch.float16 if device == "cuda" else torch.float32
    trunks = [_Trunk().to(device, kind).eval() for _ in range(2)]

    def core(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = inputs["x"].to(kind)
        drawn = inputs["h"].mean().to(kind)
        fx, fy = trunks[0](x), trunks[1](x + drawn)
        found = {f"fx_{level}": value.float() for level, value in enumerate(fx)}
        for level, value in enumerate(fy):
            found[f"fy_{level}"] = value.float() + inputs[f"prompt_level{level}"]
        return found

    return core
