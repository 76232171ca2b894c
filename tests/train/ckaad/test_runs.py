"""Whole runs of the method: resumed, refused, and through all commands in a row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from calib.commands.threshold import main as calibrate
from edge.bundle import Bundle
from edge.commands.bench import main as bench
from edge.commands.bundle import main as show
from edge.commands.run import main as edge_run
from edge.commands.sim import main as simulate
from edge.commands.verify import main as verify
from edge.errors import DataError, TrainingError
from edge.frames import FrameMeta, PixelFormat
from edge.images import pixel_digest, read_image
from edge.inspection.inspector import Inspector
from edge.manifest import InputSpec
from train import trainer
from train.commands.evaluate import main as evaluate
from train.commands.export import main as export
from train.commands.run import main as run
from train.config import TrainConfig
from train.pipeline import train
from train.runfolder import RunFolder
from train.trained import load_trained


@pytest.fixture(scope="module")
def defects(tiny_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("defects")
    for number in range(2):
        image = read_image(tiny_photos / f"good{number}.png")
        cv2.circle(image, (30 + 10 * number, 40), 6, (20, 20, 220), -1)
        cv2.imwrite(str(folder / f"bad{number}.png"), image)
    return folder


def config(photos: Path, weights: Path, defects: Path | None, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "data": str(photos),
        "method": "ckaad",
        "coarse": defects and str(defects),
        "weights": str(weights),
        "epochs": 2,
        "input": InputSpec(height=64, width=64),
        "layers": (1, 2),
        "batch": 4,
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def assert_same(one: Path, two: Path) -> None:
    a, b = (load_trained(RunFolder(path)).model.state_dict() for path in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


class Killed(BaseException):
    """Nothing in training handles it: what is on disk afterwards is what a kill would leave."""


@pytest.mark.parametrize(("real", "end"), [(True, KeyboardInterrupt), (False, Killed)], ids=["coarse", "bent"])
def test_a_run_that_was_stopped_or_killed_resumes_to_the_same_model(
    tmp_path: Path,
    tiny_photos: Path,
    random_weights: Path,
    defects: Path,
    monkeypatch: pytest.MonkeyPatch,
    real: bool,
    end: type[BaseException],
) -> None:
    settings = config(tiny_photos, random_weights, defects if real else None)
    train(RunFolder(tmp_path / "whole"), settings)
    step, seen = trainer.Trainer._step, []

    def ended(self: object, *rest: object) -> object:
        seen.append(1)
        if len(seen) == 3:
            raise end
        return step(self, *rest)  # type: ignore[arg-type]

    out = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", ended)
        if end is Killed:
            patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(end):
            train(out, settings)
    saved = out.load("checkpoint.pt")
    assert saved is not None
    assert saved["step"] in ((2,) if end is KeyboardInterrupt else (1, 2))
    assert len(saved["optimisers"]) == 2
    train(out, settings)
    assert len(seen) == 3
    assert_same(tmp_path / "whole", out.path)


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path, tiny_photos: Path, random_weights: Path) -> None:
    settings = config(tiny_photos, random_weights, None, method="recon")
    out = RunFolder(tmp_path / "run")
    out.begin(settings)
    for damaged in ({"step": 3}, {"phase": "reconstruct"}, {"phase": "reconstruct", "module": {}}):
        out.save("checkpoint.pt", damaged)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: damaged") as caught:
            train(out, settings)
        assert "--restart" in caught.value.hint
    (out.path / "checkpoint.pt").unlink()
    train(out, settings)
    assert out.finished


def test_what_cannot_be_learnt_from_is_refused(
    tmp_path: Path, tiny_photos: Path, random_weights: Path, defects: Path
) -> None:
    single = tmp_path / "single"
    single.mkdir()
    shutil.copy(tiny_photos / "good0.png", single)
    with pytest.raises(DataError, match="1 readable training image"):
        train(RunFolder(tmp_path / "a"), config(single, random_weights, defects))
    both = tmp_path / "both"
    shutil.copytree(defects, both)
    for number in range(2):
        shutil.copy(tiny_photos / f"good{number}.png", both)
    with pytest.raises(DataError, match=r"2 of .* also among the good images: good0\.png"):
        train(RunFolder(tmp_path / "b"), config(tiny_photos, random_weights, both))
    for changes, text in (
        ({"method": "recon"}, "--method recon has no use for coarse="),
        ({"method": "stfpm"}, "unknown method 'stfpm'"),
        ({"method": "redi", "coarse": None}, r"--method redi has no use for layers=\(1, 2\)"),
        ({"prompts": 4}, "--method ckaad has no use for prompts=4"),
    ):
        with pytest.raises(TrainingError, match=text):
            train(RunFolder(tmp_path / "c"), config(tiny_photos, random_weights, defects, **changes))
    assert not (tmp_path / "c").exists()


def bundle_scores(inspector: Inspector, paths: list[Path]) -> list[float]:
    slot = inspector.make_slots(1, 0)[0]
    scores = []
    for path in paths:
        image = read_image(path)
        slot.shape_pixels(image.shape[0], image.shape[1], PixelFormat.BGR8)[:] = image
        slot.meta = FrameMeta(source=path.name)
        inspection = inspector.inspect(slot)
        assert inspection.prompt == -1
        scores.append(inspection.score)
    return scores


@pytest.mark.slow
def test_the_whole_line_from_coarse_images_to_verdicts(
    tmp_path: Path, random_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, out, plan, half = (tmp_path / name for name in ("parts", "run", "redi.plan", "half.plan"))
    sizes = ["--width", "96", "--height", "64"]
    assert simulate([str(parts), "--train", "10", "--test", "8", "--good", "12", *sizes]) == 0
    tests = sorted((parts / "test").rglob("*.png"))
    marked = [path for path in tests if path.parent.name != "good"][:2]
    (tmp_path / "marked").mkdir()
    for place, path in enumerate(marked):
        shutil.copy(path, tmp_path / "marked" / f"{place}.png")

    options = ["--method", "ckaad", "--coarse", str(tmp_path / "marked"), "--layers", "1,2"]
    options += ["--weights", str(random_weights), "--size", "96x64", "--epochs", "1", "--batch", "4"]
    assert run([str(parts), "--out", str(out), *options]) == 0
    assert RunFolder(out).config().learning_rate == 5e-3
    assert RunFolder(out).read_json("run.json")["coarse_images"] == 2

    assert export([str(out), "--out", str(plan)]) == 0
    assert export([str(out), "--out", str(half), "--fp16"]) == 0
    unseen = [path for path in tests if path not in marked]
    scorer = load_trained(RunFolder(out)).scorer()
    expected = [scorer.score(read_image(path)).score for path in unseen]
    for path, tolerance in ((plan, 1e-3), (half, 0.03)):
        with Bundle.open(path) as bundle, Inspector(bundle, uncalibrated=True) as inspector:
            assert bundle.manifest.model.method == "ckaad"
            assert bundle.prompt_names == ()
            assert not any(name.startswith("prompts/") for name in bundle.members)
            assert [scale[0] for scale in bundle.manifest.model.compare.scales] == [64, 128]
            assert {pixel_digest(read_image(path)) for path in marked} < bundle.trained
            assert max(result.error for result in inspector.verify_golden()) < tolerance
            assert bundle_scores(inspector, unseen) == pytest.approx(expected, rel=tolerance)

    assert show(["show", str(plan)]) == 0
    assert verify([str(plan)]) == 0
    assert bench([str(plan), "--frames", "5", "--side", "64"]) == 0
    assert calibrate([str(plan), "--good", str(parts / "good"), "--false-reject", "0.1"]) == 0
    capsys.readouterr()
    for model in (out, plan):
        assert evaluate([str(model), str(parts), "--json"]) == 0
        printed = capsys.readouterr()
        images = json.loads(printed.out)["images"]
        assert (images["good"], images["defect"]) == (4, 2)
        assert "2 of 8 test images left out: the model was trained on them" in printed.err
    camera = "sim:seed=3,count=4,width=96,height=64"
    assert edge_run(["--camera", camera, "--engine", str(plan), "--publish", "none", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ok"] + summary["ng"] == 4
    assert np.isfinite(expected).all()
