"""The frozen extractor `phi`: ResNet-18 from the stem to layer 3, and the three ways to its weights.

`phi` is always built with its batch norms folded into the convolutions: it is frozen, so nothing is lost, and the
exported graph is what was trained against.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge.cli import console
from edge.errors import DataError

#: `(channels, stride)` of the features after layer1, layer2 and layer3.
RESNET18_SCALES = ((64, 4), (128, 8), (256, 16))

State = dict[str, Tensor]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, He et al. 2016, with torchvision's parameter names."""

    def __init__(self, inside: int, out: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inside != out:
            shortcut: list[nn.Module] = [nn.Conv2d(inside, out, 1, stride, bias=not norm)]
            if norm:
                shortcut.append(nn.BatchNorm2d(out))
            self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inside, h, w)` to `(N, out, h / stride, w / stride)`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 up to layer 3.  `norm=False` is the folded form used everywhere but in self-training."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=not norm)
        self.bn1 = nn.BatchNorm2d(64) if norm else nn.Identity()
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1, norm), BasicBlock(64, 64, 1, norm))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2, norm), BasicBlock(128, 128, 1, norm))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2, norm), BasicBlock(256, 256, 1, norm))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map normalised images `(N, 3, H, W)` to features at strides 4, 8 and 16."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        one = self.layer1(x)
        two = self.layer2(one)
        return one, two, self.layer3(two)


def freeze(module: nn.Module) -> nn.Module:
    """Put `module` in evaluation mode and stop its gradients; returns it."""
    return module.eval().requires_grad_(False)


def fold_batch_norm(state: Mapping[str, Tensor], epsilon: float = 1e-5) -> State:
    """Fold every batch norm of a torchvision ResNet state dict into the convolution before it.

    `w' = w * gamma / sqrt(var + eps)`, `b' = beta - mean * gamma / sqrt(var + eps)`.
    """
    folded: State = {}
    for name, weight in state.items():
        if weight.ndim != 4:
            continue
        conv = name.removesuffix(".weight")
        norm = _norm_after(conv)
        gamma, beta = state[f"{norm}.weight"].double(), state[f"{norm}.bias"].double()
        mean, variance = state[f"{norm}.running_mean"].double(), state[f"{norm}.running_var"].double()
        scale = gamma / torch.sqrt(variance + epsilon)
        folded[f"{conv}.weight"] = (weight.double() * scale[:, None, None, None]).float()
        folded[f"{conv}.bias"] = (beta - mean * scale).float()
    return folded


def _norm_after(conv: str) -> str:
    if conv.endswith("downsample.0"):
        return conv[:-1] + "1"
    head, _, last = conv.rpartition("conv")
    return f"{head}bn{last}"


def backbone_from_state(state: Mapping[str, Tensor], source: str) -> ResNet18:
    """Build the frozen, folded ResNet-18 from a full torchvision state dict or a folded one, told apart by its keys.

    Raises:
        DataError: the keys or shapes are not ResNet-18's.
    """
    hint = "give a torchvision ResNet-18 state dict (with or without folded batch norm), or --weights auto|self"
    try:
        wanted = state if not any("running_mean" in key for key in state) else fold_batch_norm(state)
        model = ResNet18()
        keys = model.state_dict().keys()
        missing = sorted(keys - wanted.keys())
        if missing:
            raise DataError(f"{source}: not ResNet-18 weights, {missing[0]} is missing", hint)
        model.load_state_dict({key: wanted[key].float() for key in keys})
    except (KeyError, RuntimeError, AttributeError) as error:
        raise DataError(f"{source}: not ResNet-18 weights ({str(error).splitlines()[0]})", hint) from error
    freeze(model)
    return model


def load_weights(choice: str) -> tuple[State, str]:
    """Return a state dict and its provenance for `auto` or a file name (`self` is trained, see `train.selftrain`).

    Raises:
        DataError: the file is missing, unreadable or foreign, or `auto` found neither cache nor download.
    """
    if choice == "auto":
        return _auto_weights()
    path = Path(choice)
    if not path.is_file():
        raise DataError(f"{path}: no such weights file", "--weights takes auto, self or a .pth state dict")
    return _read_state(path), f"file {path.name}"


def _read_state(path: Path) -> State:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path}: not a readable PyTorch state dict ({type(error).__name__})",
            "give a ResNet-18 state dict, saved by torch.save",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: not a state dict of tensors")
    return state


def cache_folder() -> Path:
    """Where downloaded weights are looked for first: `$REDI_CACHE`, else `~/.cache/redi-edge`."""
    return Path(os.environ.get("REDI_CACHE", Path.home() / ".cache" / "redi-edge"))


def _auto_weights() -> tuple[State, str]:
    for folder in (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"):
        for path in sorted(folder.glob("resnet18*.pth")):
            return _read_state(path), f"cached {path.name}"
    reasons = []
    for library, load in (("torchvision", _from_torchvision), ("timm", _from_timm)):
        if importlib.util.find_spec(library) is None:
            reasons.append(f"{library} is not installed")
            continue
        try:
            console.print(f"weights: asking {library} for ImageNet ResNet-18")
            return load(), f"{library} ImageNet-1k"
        except Exception as error:  # noqa: BLE001  a download may fail in any way; the next source is tried
            reasons.append(f"{library}: {type(error).__name__}")
    raise DataError(
        f"no ImageNet weights: nothing cached in {cache_folder()}, {', '.join(reasons)}",
        "with network, pip install torchvision; else use --weights FILE (a ResNet-18 state dict), "
        "or --weights self (features learnt on your own images)",
    )


def _from_torchvision() -> State:
    from torchvision.models import ResNet18_Weights

    state: State = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    return state


def _from_timm() -> State:
    import timm

    state: State = timm.create_model("resnet18.tv_in1k", pretrained=True).state_dict()
    return state
