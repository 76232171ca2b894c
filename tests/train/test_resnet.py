"""The architectures against torchvision's own and a second writing, and with real weights."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge.frames import PixelFormat
from edge.images import list_images, read_image
from edge.inspection.native import Preprocessor
from edge.manifest import MapSpec
from tests.train.norms import randomise
from train.backbones import ARCHITECTURES, Backbone, backbone_from_state, load_weights
from train.config import BACKBONES

SHARED = Path(os.environ.get("REDI_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
CAFFE_MEANS = (103.939, 116.779, 123.68)


def test_the_command_offers_every_architecture() -> None:
    assert tuple(ARCHITECTURES) == BACKBONES


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """torchvision's models, the oracle; its compiled operators may be missing or made for another torch."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.models

    return torchvision.models


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_features_are_torchvisions(torchvision: Any, name: str) -> None:
    torch.manual_seed(2)
    oracle = getattr(torchvision, name)(weights=None).eval()
    randomise(oracle)
    model = backbone_from_state(oracle.state_dict(), name)
    assert model.name == name
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        y = oracle.maxpool(oracle.relu(oracle.bn1(oracle.conv1(x))))
        for layer, feature in zip((oracle.layer1, oracle.layer2, oracle.layer3), model(x), strict=True):
            y = layer(y)
            torch.testing.assert_close(feature, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def by_hand(state: dict[str, torch.Tensor], x: torch.Tensor, *, stride_first: bool) -> list[torch.Tensor]:
    """A second writing of folded ResNet-50, straight from its state dict."""

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return nn.functional.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[2] // 2)

    x = nn.functional.max_pool2d(conv(x, "conv1", 2).relu(), 3, 2, 1)
    features = []
    for layer, count in (("layer1", 3), ("layer2", 4), ("layer3", 6)):
        for number in range(count):
            block, stride = f"{layer}.{number}", 2 if number == 0 and layer != "layer1" else 1
            y = conv(x, f"{block}.conv1", stride if stride_first else 1).relu()
            y = conv(conv(y, f"{block}.conv2", 1 if stride_first else stride).relu(), f"{block}.conv3")
            x = (y + (conv(x, f"{block}.downsample.0", stride) if number == 0 else x)).relu()
        features.append(x)
    return features


@pytest.mark.parametrize("name", ["resnet50", "resnet50_caffe"])
def test_the_stride_lies_where_the_layout_has_it(name: str) -> None:
    torch.manual_seed(4)
    model = Backbone(name)
    x = torch.randn(1, 3, 64, 64)
    raw = x * 255 * torch.tensor(model.input_spec(64, 64).std).view(1, 3, 1, 1) if name == "resnet50_caffe" else x
    with torch.no_grad():
        features = model(x)
        expected = by_hand(model.state_dict(), raw, stride_first=name == "resnet50_caffe")
        other = by_hand(model.state_dict(), raw, stride_first=name != "resnet50_caffe")
    for feature, want in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features[2], other[2], rtol=1e-2, atol=1e-3)


def test_the_station_prepares_what_caffe_weights_were_trained_on() -> None:
    """Blue, green, red, 0-255 minus the means, reaches the first convolution."""
    model = Backbone("resnet50_caffe")
    spec = model.input_spec(64, 96)
    frame = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    prepare = Preprocessor(spec, MapSpec())
    x, h = np.zeros((3, 64, 96), np.float32), np.zeros(prepare.map_shape, np.float32)
    prepare(frame, PixelFormat.BGR8, x, h, np.zeros(prepare.descriptor_size, np.float32))
    assert abs(x).max() < 3
    seen: list[torch.Tensor] = []
    model.conv1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(x)[None])
    wanted = frame.astype(np.float64) - CAFFE_MEANS
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), wanted, atol=2e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_scales_channels_and_strides_are_those_of_the_features(name: str) -> None:
    model = Backbone(name)
    with torch.no_grad():
        shapes = [tuple(f.shape) for f in model(torch.zeros(1, 3, 64, 32))]
    assert shapes == [(1, channels, 64 // stride, 32 // stride) for channels, stride in model.scales]
    assert model.channels == tuple(shape[1] for shape in shapes)
    assert [stride for _, stride in model.scales] == [4, 8, 16]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("file", "name"),
    [("resnet18_imagenet_l123.pth", "resnet18"), ("resnet50_caffe_imagenet_l123.pth", "resnet50_caffe")],
)
def test_real_weights_see_a_real_image(file: str, name: str) -> None:
    path = SHARED.parent / "weights" / file
    if not path.is_file() or not (SHARED / "bottle").is_dir():
        pytest.skip("no real weights or images here")
    model = backbone_from_state(load_weights(str(path))[0], file)
    assert model.name == name
    spec = model.input_spec(256, 256)
    prepare = Preprocessor(spec, MapSpec())
    h, descriptor = np.zeros(prepare.map_shape, np.float32), np.zeros(prepare.descriptor_size, np.float32)

    def features(image: np.ndarray) -> list[torch.Tensor]:
        x = np.zeros((3, 256, 256), np.float32)
        prepare(image, PixelFormat.BGR8, x, h, descriptor)
        with torch.no_grad():
            return [f[0].flatten(1) for f in model(torch.from_numpy(x)[None])]

    good = [read_image(path) for path in list_images(SHARED / "bottle/train/good")[:2]]
    first, second = features(good[0]), features(good[1])
    noise = features(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    for one, two, other in zip(first, second, noise, strict=True):
        assert bool(torch.isfinite(one).all())
        assert float(one.min()) >= 0
        assert 0.02 < float(one.mean()) < 5
        assert 0.05 < float((one == 0).float().mean()) < 0.95
        # Channels say different things, and images of one product resemble each other.
        assert float((one.amax(1) > 0).float().mean()) > 0.5
        alike = torch.cosine_similarity(one.mean(1), two.mean(1), dim=0)
        assert float(alike) > 0.97
        assert float(alike) > float(torch.cosine_similarity(one.mean(1), other.mean(1), dim=0))
