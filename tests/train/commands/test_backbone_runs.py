"""Large backbones through the whole line, on a tiny set with random weights: train, export, inspect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge.bundle import Bundle
from edge.frames import FrameMeta, PixelFormat
from edge.images import list_images, read_image
from edge.inspection.inspector import Inspector
from train.backbones import Backbone, fold_batch_norm
from train.commands.export import main as export
from train.commands.run import main as run
from train.redi.model import ReDi
from train.runfolder import RunFolder
from train.trained import load_trained


def random_file(name: str, path: Path) -> Path:
    """Write folded weights under which every layer passes on signals of about the size it gets."""
    torch.manual_seed(1)
    model = Backbone(name, norm=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for key, block in model.named_modules():
        if key.endswith(("bn2", "bn3")) and isinstance(block, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(block.weight, 0.4)
    state = fold_batch_norm(model.state_dict())
    if name == "resnet50_caffe":
        state["conv1.weight"] /= 57
    torch.save(state, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet50_caffe"])
def test_a_large_backbone_scores_alike_in_torch_and_on_the_station(
    name: str, tiny_photos: Path, tmp_path: Path
) -> None:
    weights = random_file(name, tmp_path / "weights.pth")
    out, plan = tmp_path / "run", tmp_path / "redi.plan"
    options = ["--weights", str(weights), "--epochs", "1", "--size", "64", "--batch", "5", "--prompts", "4"]
    assert run([str(tiny_photos), "--out", str(out), *options, "--backbone", name]) == 0
    trained = load_trained(RunFolder(out))
    assert trained.spec.backbone == name
    assert isinstance(trained.model, ReDi)
    assert [channels for channels, _ in trained.model.phi.scales] == [256, 512, 1024]
    assert [channels for channels, _, _ in trained.spec.compare.scales] == [2, 2, 2]
    assert trained.spec.input.order == ("bgr" if name == "resnet50_caffe" else "rgb")
    assert export([str(out), "--out", str(plan)]) == 0
    scorer = trained.scorer()
    with Bundle.open(plan) as bundle, Inspector(bundle, uncalibrated=True) as inspector:
        assert bundle.manifest.model == trained.spec
        assert max(result.error for result in inspector.verify_golden()) < 1e-3
        slot = inspector.make_slots(1, 0)[0]
        for path in list_images(tiny_photos)[:3]:
            image = read_image(path)
            slot.shape_pixels(image.shape[0], image.shape[1], PixelFormat.BGR8)[:] = image
            slot.meta = FrameMeta(source=path.name)
            assert inspector.inspect(slot).score == pytest.approx(scorer.score(image).score, rel=1e-3), path


@pytest.mark.slow
def test_auto_takes_the_weights_files_backbone_and_resumes_with_it(tiny_photos: Path, tmp_path: Path) -> None:
    weights = random_file("resnet50_caffe", tmp_path / "weights.pth")
    words = [
        str(tiny_photos),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "1",
        "--size",
        "64",
        "--prompts",
        "4",
        "--weights",
    ]
    assert run([*words, str(weights)]) == 0
    folder = RunFolder(tmp_path / "run")
    (folder.path / "model.pt").rename(tmp_path / "first.pt")
    # Started again, it has its own copy of the weights, and the backbone's name with it.
    torch.save({}, weights)
    assert run([*words, str(weights)]) == 0
    assert load_trained(folder).spec.backbone == "resnet50_caffe"
    first, again = (torch.load(path, weights_only=True) for path in (tmp_path / "first.pt", folder.path / "model.pt"))
    for module, state in first["modules"].items():
        for key, value in state.items():
            assert torch.equal(value, again["modules"][module][key]), key


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--backbone", "resnet50", "--weights", "self"], 2, "--weights self --backbone resnet50"),
        (["--backbone", "resnet50"], 7, "not ResNet-50 weights"),
    ],
)
def test_backbones_that_do_not_fit_end_with_one_line(
    tiny_photos: Path,
    random_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    text: str,
) -> None:
    weights = [] if "--weights" in words else ["--weights", str(random_weights)]
    assert run([str(tiny_photos), "--out", str(tmp_path / "run"), *weights, *words]) == code
    error = " ".join(capsys.readouterr().err.split())
    assert text in error
    assert "Traceback" not in error
