"""Every switch of the ablations, as a user sets it: trains, exports or is refused, and scores alike on both sides."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge.bundle import Bundle
from edge.frames import FrameMeta, PixelFormat
from edge.images import read_image
from edge.inspection.inspector import Inspector
from train.commands.export import main as export
from train.commands.run import main as run
from train.redi.bank import random_prompts
from train.redi.evidence import MarkEvidence
from train.redi.memory import joined
from train.runfolder import RunFolder
from train.trained import TrainedModel, load_trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], Path]]:
    """Where runs are kept, and those that there are by their flags: tests share them."""
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture(scope="module")
def scratched(tiny_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the good photographs with a scratch each."""
    folder = tmp_path_factory.mktemp("scratched")
    for number in range(4):
        image = read_image(tiny_photos / f"good{number}.png").copy()
        cv2.line(image, (30, 30 + 3 * number), (45, 36 + 3 * number), (20, 20, 20), 2)
        cv2.imwrite(str(folder / f"bad{number}.png"), image)
    return folder


@pytest.fixture
def trained(
    request: pytest.FixtureRequest,
    runs: tuple[Path, dict[tuple[str, ...], Path]],
    tiny_photos: Path,
    scratched: Path,
    random_weights: Path,
) -> tuple[Path, TrainedModel]:
    """A run that was trained with the flags in the test's parameter, SCRATCHED in it standing for the folder."""
    folder, known = runs
    flags = tuple(str(scratched) if flag == "SCRATCHED" else flag for flag in request.param)
    if flags not in known:
        out = folder / str(len(known))
        options = ["--epochs", "1", "--size", "64", "--batch", "4", "--prompts", "4", "--weights", str(random_weights)]
        assert run([str(tiny_photos), "--out", str(out), *options, *flags]) == 0
        known[flags] = out
    return known[flags], load_trained(RunFolder(known[flags]))


def station_scores(plan: Path, images: list[np.ndarray]) -> list[tuple[float, int]]:
    scores = []
    with Bundle.open(plan) as bundle, Inspector(bundle, uncalibrated=True) as inspector:
        assert inspector.verify_golden()
        slot = inspector.make_slots(1, 0)[0]
        for image in images:
            slot.shape_pixels(*image.shape[:2], PixelFormat.BGR8)[:] = image
            slot.meta = FrameMeta()
            inspection = inspector.inspect(slot)
            scores.append((inspection.score, inspection.prompt))
    return scores


def unseen(folder: Path) -> list[np.ndarray]:
    """Parts that were trained on, turned: their prompts differ."""
    return [np.ascontiguousarray(np.rot90(read_image(path))) for path in sorted(folder.iterdir())[:6]]


@pytest.mark.parametrize(
    ("trained", "inputs"),
    [
        (["--map", "canny", "--prompt", "random"], {"x", "prompt_key", "prompt_value"}),
        (["--prompt", "none", "--no-frb"], {"x", "h"}),
        (["--map", "lowpass", "--prompt", "none"], {"x"}),
        (["--prompt", "fixed", "--correlation-weight", "0"], {"x", "h", "prompt_key", "prompt_value"}),
        (["--coarse", "SCRATCHED"], {"x", "h", "prompt_key", "prompt_value"}),
        (["--coarse", "SCRATCHED", "--density-weight", "0", "--no-expected"], {"x", "h", "prompt_key", "prompt_value"}),
        (["--coarse", "SCRATCHED", "--tiles", "1x2"], {"x", "h", "prompt_key", "prompt_value"}),
        (["--no-drawn", "--no-level"], {"x", "h", "prompt_key", "prompt_value"}),
    ],
    indirect=["trained"],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_torch_and_the_station_score_alike(
    trained: tuple[Path, TrainedModel], inputs: set[str], tiny_photos: Path, tmp_path: Path
) -> None:
    import onnx

    out, model = trained
    plan = tmp_path / "redi.plan"
    assert export([str(out), "--out", str(plan)]) == 0
    with Bundle.open(plan) as bundle:
        graph = onnx.load_from_string(bytes(bundle.read("core.onnx")))
        assert {value.name for value in graph.graph.input} == inputs
    images, scorer = unseen(tiny_photos), model.scorer()
    found = station_scores(plan, images)
    assert [score for score, _ in found] == pytest.approx([scorer.score(image).score for image in images], rel=1e-3)
    prompts = {prompt for _, prompt in found}
    config = model.config
    if config.prompt == "none":
        assert prompts == {-1}
        assert model.bank is None
    elif config.prompt == "fixed":
        assert prompts == {0}
    elif config.prompt == "random":
        assert len(prompts) > 1


@pytest.mark.parametrize("precision", [[], ["--fp16"]], ids=["fp32", "fp16"])
@pytest.mark.parametrize("trained", [["--no-evidence"]], indirect=True)
def test_levels_are_part_of_the_core(
    trained: tuple[Path, TrainedModel], precision: list[str], tiny_photos: Path, tmp_path: Path
) -> None:
    out, _ = trained
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(out, folder.path)
    saved = folder.load("model.pt")
    assert saved is not None
    statistics = saved["modules"]["statistics"]
    plain = load_trained(folder).scorer()
    for name in [name for name in statistics if name.endswith("level.share")]:
        statistics[name].fill_(1)
        statistics[name.replace("share", "limits")].copy_(torch.tensor([-9.0, 9.0]))
        statistics[name.replace("share", "usual")].add_(0.5)
    folder.save("model.pt", saved)
    levelled = load_trained(folder).scorer()
    plan = tmp_path / "redi.plan"
    assert export([str(folder.path), "--out", str(plan), *precision]) == 0
    images = unseen(tiny_photos)
    wanted = [levelled.score(image).score for image in images]
    assert wanted != pytest.approx([plain.score(image).score for image in images], rel=0.003)
    found = [score for score, _ in station_scores(plan, images)]
    assert found == pytest.approx(wanted, rel=0.02 if precision else 1e-3)


@pytest.mark.parametrize("trained", [["--map", "canny", "--prompt", "random"]], indirect=True)
def test_a_map_made_in_the_core_exports_in_half_precision(trained: tuple[Path, TrainedModel], tmp_path: Path) -> None:
    assert export([str(trained[0]), "--out", str(tmp_path / "redi.plan"), "--fp16"]) == 0


@pytest.mark.parametrize("trained", [["--coarse", "SCRATCHED"]], indirect=True)
def test_what_was_marked_is_found_on_other_parts(
    trained: tuple[Path, TrainedModel], scratched: Path, tiny_photos: Path
) -> None:
    """The evidence, at places where it was taught there is a defect, and at all others."""
    _, model = trained
    statistics, scorer = model.model.statistics, model.scorer()
    assert isinstance(statistics.marks, MarkEvidence)

    def largest(path: Path) -> float:
        scorer.features(read_image(path))
        with torch.no_grad():
            features = model.model.phi(torch.from_numpy(scorer._prepare.x)[None])
            found = statistics.marks(joined(features, statistics.grid))
        return max(float(e.max()) for e in found)

    good = [largest(path) for path in sorted(tiny_photos.iterdir())]
    assert min(largest(path) for path in scratched.iterdir()) > max(good)


@pytest.mark.parametrize("trained", [["--no-evidence"]], indirect=True)
def test_drawn_defects_are_learnt_unless_they_are_left_out(trained: tuple[Path, TrainedModel]) -> None:
    drawn = trained[1].model.statistics.drawn
    assert drawn is not None
    assert float(drawn.verdict.weight.detach().abs().max()) > 0


@pytest.mark.parametrize("trained", [["--no-drawn", "--no-level"]], indirect=True)
def test_without_drawn_defects_there_is_nothing_of_them_in_the_core(trained: tuple[Path, TrainedModel]) -> None:
    assert trained[1].model.statistics.drawn is None


@pytest.mark.parametrize("trained", [["--coarse", "SCRATCHED", "--no-evidence"]], indirect=True)
def test_without_evidence_marks_teach_the_frb_alone(trained: tuple[Path, TrainedModel]) -> None:
    out, model = trained
    assert model.model.statistics.marks is None
    assert "discriminate-coarse" in RunFolder(out).read_json("run.json")["phases"]


@pytest.mark.parametrize("trained", [["--prompt", "nearest-features"]], indirect=True)
def test_prompts_by_features_are_scored_but_not_exported(
    trained: tuple[Path, TrainedModel], tiny_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = trained
    assert export([str(out), "--out", str(tmp_path / "redi.plan")]) == 10
    assert "--prompt nearest-features cannot be exported" in capsys.readouterr().err
    assert not (tmp_path / "redi.plan").exists()
    assert model.bank is not None
    scorer = model.scorer()
    # A prompt's own image is nearest to itself.
    for place, name in enumerate(model.bank.names):
        outputs = scorer.features(read_image(tiny_photos / name))
        x, h = torch.from_numpy(scorer._prepare.x)[None], torch.from_numpy(scorer._prepare.h)[None]
        with torch.no_grad():
            expected = model.model(x, h, *(entries[place][None] for entries in model.bank.features.values()))
        for got, want in zip(outputs, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", [["--prompt", "none", "--no-frb"]], indirect=True)
def test_without_the_frb_the_recovered_features_are_compared(trained: tuple[Path, TrainedModel]) -> None:
    _, model = trained
    assert not list(model.model.learnt["frb"].parameters())
    assert "discriminate" not in RunFolder(trained[0]).read_json("run.json")["phases"]


def test_random_prompts_cover_the_bank_but_for_the_image_itself() -> None:
    bank = np.array([5, 0, 3, 8])
    prompts = random_prompts(10, bank, seed=1)
    assert prompts.shape == (10, 3)
    for image, row in enumerate(prompts):
        assert len(set(row.tolist())) == 3
        assert image not in bank[row]
    assert len({tuple(row) for row in prompts.tolist()}) > 3
    assert np.array_equal(prompts, random_prompts(10, bank, seed=1))
    assert not np.array_equal(prompts, random_prompts(10, bank, seed=2))
    assert random_prompts(3, np.array([1]), seed=0).tolist() == [[0]] * 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--map", "sobel"], "--map"),
        (["--prompt", "worst"], "--prompt"),
        (["--correlation-weight", "-1"], "--correlation-weight"),
        (["--correlation-weight", "nan"], "--correlation-weight"),
    ],
)
def test_senseless_switches_are_refused(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(["photos", "--out", str(tmp_path / "run"), *words])
    assert exit_.value.code == 2
    assert text in capsys.readouterr().err
