from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from edge.errors import DataError
from edge.frames import F32, U8, Area
from train.datasets import Dataset, open_dataset
from train.evaluate import Scored, evaluate, resized_map, whole_frame
from train.metrics import compute_metrics

SIZE = 32


class Brightness:
    """Scores by how far each pixel is above mid grey; reuses one map, as a runtime does."""

    def __init__(self) -> None:
        self.map: F32 = np.zeros((SIZE, SIZE), np.float32)

    def score(self, image: U8) -> Scored:
        height, width = image.shape[:2]
        rows, columns = np.arange(SIZE) * height // SIZE, np.arange(SIZE) * width // SIZE
        self.map[:] = image[rows][:, columns].max(axis=2) / 255.0
        return Scored(float(np.sort(self.map, axis=None)[-20:].mean()), float(self.map.max()), self.map)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    root = tmp_path / "plate"
    for folder, count, spot in (
        ("train/good", 2, 0),
        ("test/good", 5, 0),
        ("test/bright", 4, 120),
        ("test/faint", 4, 4),
    ):
        (root / folder).mkdir(parents=True)
        masks = root / "ground_truth" / Path(folder).name
        if spot:
            masks.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(90, 110, (2 * SIZE, 2 * SIZE), np.uint8)
            mask = np.zeros_like(pixels)
            mask[10:24, 20:40] = 255 if spot else 0
            pixels[mask > 0] += np.uint8(spot)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
            if spot and (spot, number) != (4, 3):
                Image.fromarray(mask).save(masks / f"{number}_mask.png")
    return open_dataset(root)


def test_records_metrics_and_kinds(dataset: Dataset) -> None:
    evaluation = evaluate(Brightness(), dataset)
    assert [record.path for record in evaluation.records] == [sample.path for sample in dataset.test]
    assert evaluation.records[0].name == "test/bright/0.png"
    assert [record.kind for record in evaluation.records] == ["bright"] * 4 + ["faint"] * 4 + ["good"] * 5
    # The scorer wrote all maps into the same memory: they must differ all the same, each with its own peak.
    for record, anomaly_map in zip(evaluation.records, evaluation.maps, strict=True):
        assert record.peak == pytest.approx(float(anomaly_map.max()))
    assert [mask is None for mask in evaluation.masks] == [
        record.name == "test/faint/3.png" for record in evaluation.records
    ]
    labels = [record.label for record in evaluation.records]
    scores = [record.score for record in evaluation.records]
    assert evaluation.metrics == compute_metrics(labels, scores, evaluation.maps, evaluation.masks)
    assert evaluation.metrics.image_auroc == pytest.approx(roc_auc_score(labels, scores))
    assert evaluation.kinds["good"].image_auroc is None
    assert evaluation.kinds["bright"].image_auroc == 1.0
    faint = [4 <= index < 8 for index in range(4, 13)]
    assert evaluation.kinds["faint"].image_auroc == pytest.approx(roc_auc_score(faint, scores[4:]))
    assert evaluation.kinds["faint"].mean_score == pytest.approx(np.mean(scores[4:8]))
    assert evaluation.seconds_per_image > 0


def test_json_is_one_strict_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    line = evaluate(Brightness(), dataset, progress=False).to_json()
    assert capsys.readouterr().err.strip() == ""
    assert "\n" not in line
    summary = json.loads(line)
    assert summary["images"] == {"good": 5, "defect": 8, "defect_with_mask": 7, "unreadable": 0}
    assert summary["metrics"]["reasons"] == {}
    assert 0.5 < summary["metrics"]["pixel_auroc"] < 1.0
    assert summary["dataset"] == "plate"


def test_unreadable_test_images_are_left_out_and_named(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    dataset.test[0].path.write_bytes(b"broken")
    evaluation = evaluate(Brightness(), dataset)
    assert evaluation.skipped == ("test/bright/0.png",)
    assert len(evaluation.records) == len(evaluation.maps) == len(evaluation.masks) == 12
    error = capsys.readouterr().err
    assert "1 image could not be read: 0.png" in error
    assert "13/13" in error
    for sample in dataset.test:
        sample.path.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 13 images"):
        evaluate(Brightness(), dataset)


def test_only_good_test_images_still_evaluate(dataset: Dataset) -> None:
    good = tuple(sample for sample in dataset.test if sample.label == 0)
    evaluation = evaluate(Brightness(), Dataset("plate", "mvtec", dataset.root, dataset.train, good))
    assert evaluation.metrics.image_auroc is None
    assert json.loads(evaluation.to_json())["metrics"]["reasons"]["image_auroc"] == "no defect images"


def test_no_test_images_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no test images"):
        evaluate(Brightness(), Dataset("plate", "folder", dataset.root, dataset.train))


@pytest.mark.parametrize("broken", ["score", "peak", "map"])
def test_a_model_that_gives_nan_is_named_with_its_image(dataset: Dataset, broken: str) -> None:
    class Broken(Brightness):
        def score(self, image: U8) -> Scored:
            scored = super().score(image)
            if broken == "map":
                self.map[3, 4] = math.nan
            return scored._replace(**({} if broken == "map" else {broken: math.nan}))

    with pytest.raises(DataError, match=r"NaN or infinity for .*test/bright/0\.png"):
        evaluate(Broken(), dataset)


def test_a_mask_of_another_aspect_is_an_error(dataset: Dataset) -> None:
    Image.fromarray(np.ones((10, 20), np.uint8)).save(dataset.root / "ground_truth/bright/0_mask.png")
    with pytest.raises(DataError, match=r"0_mask\.png is 20×10.*64×64"):
        evaluate(Brightness(), dataset)


def test_maps_are_compared_at_the_size_asked_for(dataset: Dataset) -> None:
    evaluation = evaluate(Brightness(), dataset, size=(16, 64))
    assert {anomaly_map.shape for anomaly_map in evaluation.maps} == {(16, 64)}
    assert {mask.shape for mask in evaluation.masks if mask is not None} == {(16, 64)}
    # The bright spots are still where their masks are.
    assert evaluation.metrics.pixel_auroc == pytest.approx(
        evaluate(Brightness(), dataset).metrics.pixel_auroc, abs=0.05
    )


def test_a_padded_map_is_stretched_over_the_frame_alone() -> None:
    anomaly_map = np.zeros((8, 12), np.float32)
    anomaly_map[:, 4:6], anomaly_map[:, 6:8] = 1, 3
    whole = whole_frame(anomaly_map, Area(0, 4, 8, 4))
    assert whole.shape == (8, 12)
    assert (whole[:, :4] == 1).all()
    assert (whole[:, 8:] == 3).all()
    assert whole_frame(anomaly_map, Area(0, 0, 8, 12)) is anomaly_map
    assert whole_frame(anomaly_map, None) is anomaly_map


def test_shrunk_maps_keep_their_mean_and_grown_ones_their_values() -> None:
    anomaly_map = np.random.default_rng(0).random((8, 12)).astype(np.float32)
    expected = anomaly_map.reshape(4, 2, 6, 2).mean((1, 3))
    np.testing.assert_allclose(resized_map(anomaly_map, (4, 6)), expected, rtol=1e-6)
    grown = resized_map(anomaly_map, (24, 36))
    np.testing.assert_allclose(grown[1::3, 1::3], anomaly_map, rtol=1e-6)
