"""The commands in a row with a canvas of non-square tiles and images of mixed sizes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.bundle import Bundle
from edge.commands.sim import main as simulate
from edge.images import read_image
from edge.inspection.inspector import Inspector
from edge.manifest import CanvasSpec
from train.commands.evaluate import main as evaluate
from train.commands.export import main as export
from train.commands.run import main as run
from train.evaluate import BundleScorer
from train.runfolder import RunFolder
from train.trained import load_trained

CANVAS = CanvasSpec("pad", 2, 2, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sim") / "parts"
    assert simulate([str(folder), "--train", "4", "--test", "4", "--width", "128", "--height", "96"]) == 0
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        # Cut alike, images and their masks, which have equal names, so that sizes and aspects differ.
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if path.parent.parent.name in ("train", "test") and path.parent.name == "good" and number % 2:
            cv2.imwrite(str(path), np.ascontiguousarray(image[:, 20:100]))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--epochs", "1", "--batch", "4", "--weights", str(random_weights), "--prompts", "4"]
    canvas = ["--size", "96x64", "--tiles", "2x2", "--overlap", "32", "--fit", "pad"]
    assert run([str(data), "--out", str(out), *options, *canvas]) == 0
    return out


@pytest.fixture(scope="module")
def plan(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "redi.plan"
    assert export([str(trained), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_torch_and_the_station_agree_on_every_pixel(data: Path, trained: Path, plan: Path) -> None:
    scorer = load_trained(RunFolder(trained)).scorer()
    with Bundle.open(plan) as bundle, Inspector(bundle, uncalibrated=True) as inspector:
        assert bundle.manifest.model.canvas == CANVAS
        assert len(bundle.prompt_names) == 8
        assert all("#" in name for name in bundle.prompt_names)
        assert len(bundle.trained) == 4
        assert max(result.error for result in inspector.verify_golden()) < 1e-3
        station = BundleScorer(inspector)
        shapes = set()
        for path in sorted((data / "test").rglob("*.png")):
            image = read_image(path)
            shapes.add(image.shape)
            expected, found = scorer.score(image), station.score(image)
            assert found.score == pytest.approx(expected.score, rel=1e-3)
            assert expected.anomaly_map.shape == (96, 160)
            np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=5e-3, atol=5e-4)
        assert len(shapes) == 2


@pytest.mark.slow
def test_evaluations_of_run_and_bundle_agree_at_a_size_that_was_asked_for(
    data: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metrics = []
    for model in (trained, plan):
        options = ["--size", "64", "--report", str(tmp_path / model.name)]
        assert evaluate([str(model), str(data), "--json", *options]) == 0
        metrics.append(json.loads(capsys.readouterr().out)["metrics"])
        assert (tmp_path / model.name / "index.html").stat().st_size > 10_000
    for name in ("image_auroc", "pixel_auroc", "aupro_30"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=0.02), name


@pytest.mark.parametrize(
    "canvas", [["--tiles", "2x2", "--overlap", "48"], ["--tiles", "0x2"], ["--tiles", "99x1"], ["--fit", "crop"]]
)
def test_a_canvas_that_cannot_be_is_a_usage_error(tmp_path: Path, tiny_photos: Path, canvas: list[str]) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(run([str(tiny_photos), "--out", str(out), *canvas]))
    assert caught.value.code == 2
    assert not out.exists()
