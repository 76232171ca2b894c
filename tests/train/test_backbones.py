from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edge.errors import DataError, TrainingError
from tests.train.norms import randomise
from train.backbones import Backbone, backbone_from_state, fold_batch_norm, load_weights, stored_backbone


def random_full_model(seed: int = 0, name: str = "resnet18") -> Backbone:
    torch.manual_seed(seed)
    model = Backbone(name, norm=True)
    randomise(model)
    return model.eval()


def test_folded_features_equal_those_with_batch_norm() -> None:
    full = random_full_model()
    folded = backbone_from_state(full.state_dict(), "full")
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for with_norm, without in zip(full(x), folded(x), strict=True):
            torch.testing.assert_close(without, with_norm, rtol=1e-4, atol=1e-4)


def test_both_kinds_of_file_are_recognised_by_their_keys(tmp_path: Path) -> None:
    full = random_full_model()
    state = full.state_dict() | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "full.pth")
    torch.save(fold_batch_norm(full.state_dict()), tmp_path / "folded.pth")
    models = [backbone_from_state(load_weights(str(tmp_path / name))[0], name) for name in ("full.pth", "folded.pth")]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(models[0](x), models[1](x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_extractor_is_frozen_at_strides_4_8_16() -> None:
    model = backbone_from_state(random_full_model().state_dict(), "full")
    assert not any(p.requires_grad for p in model.parameters())
    assert [tuple(f.shape) for f in model(torch.zeros(1, 3, 64, 128))] == [
        (1, 64, 16, 32),
        (1, 128, 8, 16),
        (1, 256, 4, 8),
    ]


@pytest.mark.parametrize("broken", ["text", "truncated", "foreign", "shapes", "missing"])
def test_unusable_weights_are_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(fold_batch_norm(random_full_model().state_dict()), path)
    if broken == "text":
        path.write_text("not weights")
    elif broken == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif broken == "foreign":
        torch.save({"embedding": torch.zeros(3)}, path)
    elif broken == "shapes":
        torch.save({k: v[:1] for k, v in fold_batch_norm(random_full_model().state_dict()).items()}, path)
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"weights\.pth") as caught:
        backbone_from_state(load_weights(str(path))[0], str(path))
    assert caught.value.exit_code == 7


def test_auto_takes_the_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(fold_batch_norm(random_full_model(3).state_dict()), tmp_path / "resnet18-abc.pth")
    monkeypatch.setenv("REDI_CACHE", str(tmp_path))
    state, source = load_weights("auto")
    assert source == "cached resnet18-abc.pth"
    backbone_from_state(state, source)


def test_auto_without_cache_or_loader_names_the_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for library in ("torchvision.models", "timm"):
        monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(DataError) as caught:
        load_weights("auto")
    assert "--weights FILE" in caught.value.hint
    assert "--weights self" in caught.value.hint


def test_automatic_weights_that_cannot_be_had_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="torchvision is not installed, timm is not installed") as caught:
        load_weights("auto")
    assert "pip install torchvision" in caught.value.hint
    # Nothing is said to be asked that is not there.
    assert capsys.readouterr().err == ""


# Recognition


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
@pytest.mark.parametrize("folded", [False, True])
def test_the_architecture_is_told_by_keys_and_shapes(name: str, folded: bool) -> None:
    state = random_full_model(name=name).state_dict()
    model = backbone_from_state(fold_batch_norm(state) if folded else state, "weights")
    assert model.name == name


def caffe_scaled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"conv1.weight": state["conv1.weight"] / 57}


def test_the_caffe_layout_is_told_by_its_input_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    state = Backbone("resnet50").state_dict()
    assert backbone_from_state(state, "a.pth").name == "resnet50"
    assert "--backbone resnet50_caffe says otherwise" in " ".join(capsys.readouterr().err.split())
    assert backbone_from_state(caffe_scaled(state), "a.pth").name == "resnet50_caffe"
    assert "a.pth taken for Caffe-layout ResNet-50" in " ".join(capsys.readouterr().err.split())
    # Who names it is asked nothing.
    assert backbone_from_state(caffe_scaled(state), "a.pth", "resnet50").name == "resnet50"
    assert backbone_from_state(state, "a.pth", "resnet50_caffe").name == "resnet50_caffe"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "asked", "problem"),
    [
        ("resnet18", "resnet50", r"w.pth: not ResNet-50 weights, layer1.0.conv1.weight is \(64, 64, 3, 3\)"),
        ("resnet50", "resnet18", "not ResNet-18 weights, layer1.0.conv1.weight"),
        ("resnet50", "wide_resnet50_2", "not WideResNet-50-2 weights"),
        ("wide_resnet50_2", "resnet50_caffe", "not Caffe-layout ResNet-50 weights"),
    ],
)
def test_weights_of_another_backbone_are_refused(name: str, asked: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        backbone_from_state(Backbone(name).state_dict(), "w.pth", asked)


def test_deeper_relatives_and_broken_numbers_are_refused() -> None:
    state = Backbone("resnet18").state_dict()
    deeper = state | {key.replace("layer1.1", "layer1.2"): value for key, value in state.items() if "layer1.1" in key}
    with pytest.raises(DataError, match=r"no known backbone's weights, layer1\.2\..* is too much"):
        backbone_from_state(deeper, "resnet34.pth")
    with pytest.raises(DataError, match="not finite"):
        backbone_from_state(state | {"conv1.bias": torch.full((64,), torch.nan)}, "w.pth")
    full = random_full_model().state_dict()
    del full["bn1.weight"]
    with pytest.raises(DataError, match=r"bn1\.weight is missing"):
        backbone_from_state(full, "w.pth")


@pytest.mark.parametrize("damage", ["name", "state", "source", "foreign"])
def test_a_run_folders_backbone_that_is_damaged_is_an_error(damage: str) -> None:
    saved: dict[str, Any] = {"name": "resnet18", "state": Backbone("resnet18").state_dict(), "source": "file x"}
    assert stored_backbone(saved, "run/backbone.pth")[1] == "file x"
    if damage == "foreign":
        saved["name"] = "resnet50"
    else:
        del saved[damage]
    with pytest.raises(TrainingError, match=r"run/backbone\.pth") as caught:
        stored_backbone(saved, "run/backbone.pth")
    assert "--restart" in caught.value.hint


# Cache


def test_the_cache_is_searched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDI_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    torch.save(Backbone("resnet50_caffe").state_dict(), tmp_path / "resnet50_caffe_imagenet.pth")
    assert load_weights("auto", "resnet50_caffe")[1] == "cached resnet50_caffe_imagenet.pth"
    # Caffe's is not torchvision's, though its name begins alike.
    with pytest.raises(DataError, match=r"no ImageNet weights of ResNet-50: .*torchvision is not installed") as caught:
        load_weights("auto", "resnet50")
    assert "self" not in caught.value.hint
    torch.save(Backbone("resnet50").state_dict(), tmp_path / "resnet50-0676ba61.pth")
    assert load_weights("auto", "resnet50")[1] == "cached resnet50-0676ba61.pth"
    with pytest.raises(DataError, match="WideResNet-50-2"):
        load_weights("auto", "wide_resnet50_2")


def test_no_library_offers_caffe_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDI_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(DataError, match="Caffe-layout ResNet-50") as caught:
        load_weights("auto", "resnet50_caffe")
    assert "--weights FILE" in caught.value.hint
