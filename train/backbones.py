"""The frozen extractor `phi` and the ways to its weights: a file, the cache or a download.

Files are told apart by their shapes, and batch norms are folded (`train.resnet` has the architectures).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge.cli import console
from edge.errors import DataError, TrainingError
from train.resnet import ARCHITECTURES, RESNET18_SCALES, Backbone, ResNet18, freeze

__all__ = [
    "ARCHITECTURES",
    "RESNET18_SCALES",
    "Backbone",
    "ResNet18",
    "State",
    "backbone_from_state",
    "cache_folder",
    "fold_batch_norm",
    "freeze",
    "load_weights",
    "stored_backbone",
]

State = dict[str, Tensor]

#: The backbone where neither `--backbone` nor a weights file names one.
DEFAULT = "resnet18"

#: Mean |weight| of the folded first convolution below which it was made for samples 0-255 rather than for normalised
#: ones.  Such samples are 57 times larger; published weights lie near 0.017 for normalised input, 0.0013 for 0-255.
RAW_INPUT_BELOW = 0.0045

_OURS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")


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


def backbone_from_state(state: Mapping[str, Tensor], source: str, name: str = "auto") -> Backbone:
    """Build the frozen, folded backbone from a full torchvision state dict or a folded one, told apart by its keys.

    `name` is one of `ARCHITECTURES`; `auto` takes the one that keys and shapes say.  Caffe's ResNet-50 has the shapes
    of torchvision's: there `auto` goes by the first convolution, which is made for samples 0-255 (see
    `RAW_INPUT_BELOW`), and says so.

    Raises:
        DataError: the keys or shapes are not those of the backbone, or a weight is not finite.
    """
    hint = "give a state dict of ResNet-18, ResNet-50 or WideResNet-50-2 in torchvision's layout, with batch norms or "
    hint += "folded, or --weights auto"
    ours = {key: value for key, value in state.items() if key.startswith(_OURS)}
    try:
        folded = fold_batch_norm(ours) if any("running_mean" in key for key in ours) else ours
    except KeyError as error:
        raise DataError(f"{source}: not ResNet weights, {error.args[0]} is missing", hint) from error
    except RuntimeError as error:
        raise DataError(f"{source}: not ResNet weights ({str(error).splitlines()[0]})", hint) from error
    chosen = _recognise(folded, source) if name == "auto" else name
    if difference := _difference(folded, chosen):
        what = "no known backbone's" if name == "auto" else f"not {ARCHITECTURES[chosen].title}"
        raise DataError(f"{source}: {what} weights, {difference}", hint)
    if not all(bool(torch.isfinite(value).all()) for value in folded.values()):
        raise DataError(f"{source}: weights that are not finite", "get the file again from its source")
    model = Backbone(chosen)
    model.load_state_dict({key: value.float() for key, value in folded.items()})
    return freeze(model)


def _recognise(folded: Mapping[str, Tensor], source: str) -> str:
    """Return the architecture of these shapes, or the nearest where it is none: the difference can then be named."""
    fitting = [name for name in ARCHITECTURES if not _difference(folded, name)]
    if "resnet50_caffe" not in fitting:
        return fitting[0] if fitting else "resnet50" if "layer1.0.conv3.weight" in folded else DEFAULT
    raw = float(folded["conv1.weight"].float().abs().mean()) < RAW_INPUT_BELOW
    chosen, other = ("resnet50_caffe", "resnet50") if raw else ("resnet50", "resnet50_caffe")
    made_for = "BGR samples 0-255" if raw else "normalised RGB"
    console.print(
        f"weights: {source} taken for {ARCHITECTURES[chosen].title}, as its first layer seems made for {made_for}; "
        f"--backbone {other} says otherwise",
        markup=False,
    )
    return chosen


@lru_cache
def _shapes(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in Backbone(name).state_dict().items()}


def _difference(folded: Mapping[str, Tensor], name: str) -> str:
    """Say what first keeps a folded state dict from being that of this architecture; empty where nothing does."""
    shapes = _shapes(name)
    for key, shape in shapes.items():
        if key not in folded:
            return f"{key} is missing"
        if folded[key].shape != shape:
            return f"{key} is {tuple(folded[key].shape)}, not {tuple(shape)}"
    foreign = next((key for key in folded if key not in shapes), None)
    return f"{foreign} is too much" if foreign else ""


def stored_backbone(saved: Mapping[str, Any], source: str) -> tuple[Backbone, str]:
    """Return the backbone that a run folder keeps, and where its weights came from.

    Raises:
        TrainingError: it is not whole.
    """
    try:
        return backbone_from_state(saved["state"], source, saved["name"]), str(saved["source"])
    except (AttributeError, KeyError, TypeError, DataError) as error:
        problem = error.problem if isinstance(error, DataError) else f"{source}: {type(error).__name__} {error}"
        raise TrainingError(f"damaged run, {problem}", "discard it with train-run --restart") from error


def load_weights(choice: str, name: str = "auto") -> tuple[State, str]:
    """Return a state dict and its provenance for `auto` or a file name (`self` is trained, see `train.selftrain`).

    `name` is the backbone that `auto` looks for, ResNet-18 where it is `auto` too; a file is taken as it is.

    Raises:
        DataError: the file is missing, unreadable or foreign, or `auto` found neither cache nor download.
    """
    if choice == "auto":
        return _auto_weights(DEFAULT if name == "auto" else name)
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
            "give a ResNet state dict, saved by torch.save",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: not a state dict of tensors")
    return state


def cache_folder() -> Path:
    """Where downloaded weights are looked for first: `$REDI_CACHE`, else `~/.cache/redi-edge`."""
    return Path(os.environ.get("REDI_CACHE", Path.home() / ".cache" / "redi-edge"))


def _belongs(path: Path, name: str) -> bool:
    """Whether a cached file is called after this backbone, and not after one whose name begins like it."""
    return max((other for other in ARCHITECTURES if path.name.startswith(other)), key=len, default="") == name


def _auto_weights(name: str) -> tuple[State, str]:
    title = ARCHITECTURES[name].title
    for folder in (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"):
        for path in sorted(folder.glob(f"{name}*.pth")):
            if _belongs(path, name):
                return _read_state(path), f"cached {path.name}"
    if name == "resnet50_caffe":
        raise DataError(
            f"no weights of {title}: nothing like {name}*.pth in {cache_folder()}, and no library offers them",
            f"--weights FILE (a state dict of {title}), or another --backbone",
        )
    reasons = []
    for library, load in (("torchvision", _from_torchvision), ("timm", _from_timm)):
        if importlib.util.find_spec(library) is None:
            reasons.append(f"{library} is not installed")
            continue
        try:
            console.print(f"weights: asking {library} for ImageNet {title}")
            return load(name), f"{library} ImageNet-1k"
        except Exception as error:  # noqa: BLE001  a download may fail in any way; the next source is tried
            reasons.append(f"{library}: {type(error).__name__}")
    learnt = ", or --weights self (features learnt on your own images)" if name == DEFAULT else ""
    raise DataError(
        f"no ImageNet weights of {title}: nothing cached in {cache_folder()}, {', '.join(reasons)}",
        f"with network, pip install torchvision; else use --weights FILE (a {title} state dict){learnt}",
    )


def _from_torchvision(name: str) -> State:
    from torchvision.models import get_model_weights

    state: State = get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(progress=True, check_hash=True)
    return state


def _from_timm(name: str) -> State:
    import timm

    state: State = timm.create_model(f"{name}.tv_in1k", pretrained=True).state_dict()
    return state
