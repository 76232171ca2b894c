from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge.errors import DataError
from train.backbones import ResNet18, backbone_from_state, fold_batch_norm, load_weights


def random_full_model(seed: int = 0) -> ResNet18:
    torch.manual_seed(seed)
    model = ResNet18(norm=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
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
