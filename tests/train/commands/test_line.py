"""The commands in a row, as a user runs them, on a tiny simulated set: train, evaluate, export, calibrate, inspect."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from calib.commands.threshold import main as calibrate
from edge.bundle import Bundle
from edge.commands.run import main as edge_run
from edge.commands.sim import main as simulate
from edge.frames import FrameMeta, PixelFormat
from edge.images import read_image
from edge.inspection.inspector import Inspector
from train.commands.evaluate import main as evaluate
from train.commands.export import main as export
from train.commands.run import input_size
from train.commands.run import main as run
from train.runfolder import RunFolder
from train.trained import load_trained

SHARED = Path(os.environ.get("REDI_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sim") / "parts"
    sizes = ["--width", "128", "--height", "96"]
    assert simulate([str(folder), "--train", "12", "--test", "8", "--good", "12", *sizes]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--epochs", "4", "--size", "96x64", "--batch", "4", "--weights", str(random_weights)]
    assert run([str(data), "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def plan(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "redi.plan"
    assert export([str(trained), "--out", str(out)]) == 0
    return out


def bundle_score(inspector: Inspector, path: Path) -> float:
    slot = inspector.make_slots(1, 0)[0]
    image = read_image(path)
    slot.shape_pixels(*image.shape[:2], PixelFormat.BGR8)[:] = image
    slot.meta = FrameMeta(source=path.name)
    return inspector.inspect(slot).score


def test_torch_and_the_bundle_give_the_same_scores(data: Path, trained: Path, plan: Path) -> None:
    scorer = load_trained(RunFolder(trained)).scorer()
    with Bundle.open(plan) as bundle, Inspector(bundle, uncalibrated=True) as inspector:
        for path in sorted((data / "test").rglob("*.png")):
            expected = scorer.score(read_image(path)).score
            assert bundle_score(inspector, path) == pytest.approx(expected, rel=1e-3), path


def test_the_golden_frames_pass_on_this_machine(plan: Path) -> None:
    with Bundle.open(plan) as bundle, Inspector(bundle, uncalibrated=True) as inspector:
        results = inspector.verify_golden()
    assert len(results) == 6
    assert max(result.error for result in results) < 1e-3


def test_evaluation_of_run_and_bundle_agree(
    data: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metrics = []
    for model in (trained, plan):
        assert evaluate([str(model), str(data), "--json", "--report", str(tmp_path / model.name)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        metrics.append(json.loads(lines[0])["metrics"])
        assert (tmp_path / model.name / "index.html").stat().st_size > 10_000
    for name in ("image_auroc", "pixel_auroc", "aupro_30", "aupro_5", "image_ap", "image_f1_max"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=0.02), name


def test_the_bundle_says_where_it_came_from(data: Path, plan: Path) -> None:
    with Bundle.open(plan) as bundle:
        provenance = bundle.manifest.provenance
        assert provenance["seed"] == "0"
        assert len(provenance["training_data_sha256"]) == 64
        assert len(bundle.trained) == 12
        # "(turned)" behind the name of a file tells a turned copy.
        prompts = {name.removesuffix(" (turned)") for name in bundle.prompt_names}
        assert prompts <= {path.name for path in (data / "train" / "good").iterdir()}
        assert str(data.parent) not in bundle.manifest.provenance.__repr__()


def test_fp16_halves_the_size_and_prints_its_error(
    data: Path, trained: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half.plan"
    assert export([str(trained), "--out", str(half), "--fp16"]) == 0
    assert "largest score change on the golden frames" in capsys.readouterr().err
    with Bundle.open(plan) as full, Bundle.open(half) as bundle:
        assert bundle.manifest.model.core.precision == "fp16"
        assert bundle.members["core.onnx"].size < 0.55 * full.members["core.onnx"].size
        assert bundle.array("prompts/key.npy").dtype == np.float16
        with Inspector(full, uncalibrated=True) as a, Inspector(bundle, uncalibrated=True) as b:
            assert b.verify_golden()
            for path in sorted((data / "test" / "good").iterdir()):
                assert bundle_score(a, path) == pytest.approx(bundle_score(b, path), rel=0.03)


def test_calibrate_and_inspect_the_simulated_line(
    data: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated = Path(shutil.copy(plan, tmp_path / "redi.plan"))
    assert calibrate([str(calibrated), "--good", str(data / "good"), "--false-reject", "0.05"]) == 0
    capsys.readouterr()
    camera = "sim:seed=3,count=10,width=128,height=96"
    assert edge_run(["--camera", camera, "--engine", str(calibrated), "--publish", "none", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert evaluate([str(calibrated), str(data)]) == 0
    table = capsys.readouterr().out
    assert "defects rejected at the threshold" in table
    assert "of 4" in table
    assert summary["frames"] == 10
    assert summary["ok"] + summary["ng"] == 10


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["missing", "--out", "OUT"], 7, "missing"),
        (["DATA", "--out", "OUT", "--size", "100"], 2, "--size 100"),
        (["DATA", "--out", "OUT", "--size", "wide"], 2, "--size wide"),
        (["DATA", "--out", "OUT", "--batch", "1"], 2, "--batch 1"),
        (["DATA", "--out", "OUT", "--weights", "nowhere.pth"], 7, "nowhere.pth"),
        (["DATA", "--out", "OUT", "--layout", "floppy"], 7, "floppy"),
    ],
)
def test_senseless_requests_end_with_one_line_and_a_code(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    words = [str(data) if word == "DATA" else str(tmp_path / "out") if word == "OUT" else word for word in words]
    assert run(words) == code
    error = capsys.readouterr().err
    assert text in error.replace("\n", " ")
    assert "Traceback" not in error


def test_export_of_an_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(tmp_path), "--out", str(tmp_path / "x.plan")]) == 10
    assert "config.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("512x256", (256, 512)), ("64X96", (96, 64))])
def test_sizes_are_width_by_height(text: str, size: tuple[int, int]) -> None:
    assert input_size(text) == size


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "bottle").is_dir(), reason="no real images here")
def test_real_bottles_are_told_apart(tmp_path: Path) -> None:
    """A short training on few images, far from the full one of `tests/benchmarks/bench_line.py`."""
    from train.datasets import open_dataset
    from train.evaluate import evaluate as evaluate_set

    weights = SHARED.parent / "weights" / "resnet18_imagenet_l123.pth"
    if not weights.is_file():
        pytest.skip("no ImageNet weights here")
    few = {"train/good": 32, "test/good": 8, "test/broken_large": 6, "test/contamination": 6}
    few |= {f"ground_truth/{kind}": 6 for kind in ("broken_large", "contamination")}
    for name, count in few.items():
        images = sorted((SHARED / "bottle" / name).iterdir())[:count]
        assert len(images) == count
        (tmp_path / "bottle" / name).mkdir(parents=True)
        for image in images:
            (tmp_path / "bottle" / name / image.name).symlink_to(image.resolve())
    out = tmp_path / "run"
    options = ["--weights", str(weights), "--epochs", "10", "--size", "64", "--turned", "none"]
    assert run([str(tmp_path / "bottle"), "--out", str(out), *options]) == 0
    dataset = open_dataset(tmp_path / "bottle")
    metrics = evaluate_set(load_trained(RunFolder(out)).scorer(), dataset, progress=False).metrics
    assert metrics.image_auroc is not None
    assert metrics.image_auroc > 0.9
    assert metrics.pixel_auroc is not None
    assert metrics.pixel_auroc > 0.9
