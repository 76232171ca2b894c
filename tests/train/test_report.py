from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from edge.errors import DataError
from train.charts import draw_charts
from train.evaluate import Evaluation, KindMetrics, Record
from train.metrics import Curves, compute_metrics
from train.report import EXAMPLES, write_report


def make_evaluation(folder: Path, good: int = 10, defect: int = 12, marked: bool = True) -> Evaluation:
    rng = np.random.default_rng(2)
    records, maps, masks = [], [], []
    for index in range(good + defect):
        label = int(index >= good)
        name = f"test/{'<scratch>' if label else 'good'}/{index:02}.png"
        path = folder / f"{index:02}.png"
        pixels = rng.integers(100, 130, (40, 60), np.uint8)
        anomaly_map = rng.random((32, 32)).astype(np.float32) * 0.3
        mask = np.zeros((32, 32), bool)
        if label:
            mask[8:16, 8:20] = True
            pixels[10:20, 15:37] = 250
            anomaly_map[mask] += 0.2 + 0.05 * (index - good)
        Image.fromarray(pixels).save(path)
        peak = float(anomaly_map.max())
        records.append(Record(path, name, "<scratch>" if label else "good", label, 0.9 * peak, peak))
        maps.append(anomaly_map)
        masks.append(mask if marked or not label else None)
    labels = [record.label for record in records]
    scores = [record.score for record in records]
    return Evaluation(
        dataset="plates & <lids>",
        layout="mvtec",
        records=tuple(records),
        maps=tuple(maps),
        masks=tuple(masks),
        metrics=compute_metrics(labels, scores, maps, masks),
        kinds={"<scratch>": KindMetrics(defect, 0.5, 1.0), "good": KindMetrics(good, 0.2, None)},
        skipped=("test/good/<odd>.png",),
        seconds_per_image=0.0123,
    )


class Tags(HTMLParser):
    """Collects the tags and refuses crossed or unclosed ones."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    page = write_report(tmp_path / "new" / "report", evaluation, "Run <7>", threshold=0.4, facts={"Seed": "<1>"})
    text = page.read_text("utf-8")
    tags = Tags(text).seen
    sources = [attributes["src"] or "" for tag, attributes in tags if tag == "img"]
    links = [
        value or "" for _, attributes in tags for name, value in attributes.items() if name in ("href", "xlink:href")
    ]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert sum(tag == "svg" for tag, _ in tags) == 4
    # Misses show image, map and truth; false alarms image and map.
    assert len(sources) == 3 * EXAMPLES + 2 * EXAMPLES
    for shown in (
        "Run &lt;7&gt;",
        "plates &amp; &lt;lids&gt;",
        "&lt;scratch&gt;",
        "&lt;1&gt;",
        "&lt;odd&gt;",
        "12.3 ms",
    ):
        assert shown in text
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "metrics.json", "scores.csv"]


def test_galleries_start_with_the_worst(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    text = write_report(tmp_path / "r", evaluation, threshold=0.4).read_text("utf-8")
    shown = re.findall(r'<div class="name">test/(?:&lt;scratch&gt;|good)/(\d+)\.png', text)
    order = sorted(range(22), key=lambda index: evaluation.records[index].score)
    misses = [index for index in order if index >= 10][:EXAMPLES]
    alarms = [index for index in reversed(order) if index < 10][:EXAMPLES]
    assert [int(name) for name in shown] == misses + alarms
    found = sum(record.score > 0.4 for record in evaluation.records if record.label)
    assert f"{found}/12" in text
    assert text.count("accepted, wrong") + text.count("rejected, right") == EXAMPLES


def test_truth_is_outlined_in_place(tmp_path: Path) -> None:
    text = write_report(tmp_path / "r", make_evaluation(tmp_path)).read_text("utf-8")
    pictures = [base64.b64decode(data) for data in re.findall(r'base64,([^"]+)"', text)[:3]]
    image, _, truth = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int) for data in pictures)
    changed = np.argwhere(np.abs(image - truth).max(axis=2) > 80)
    # The mask's rows 8–16 of 32 are 10–20 of 40, its columns 8–20 of 32 are 15–37.5 of 60.
    assert changed.min(axis=0) == pytest.approx([10, 15], abs=3)
    assert changed.max(axis=0) == pytest.approx([19, 36], abs=3)


def test_json_and_csv_hold_the_figures(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path)
    write_report(tmp_path / "r", evaluation, threshold=0.4)
    summary = json.loads((tmp_path / "r/metrics.json").read_text())
    assert summary["metrics"]["image_auroc"] == evaluation.metrics.image_auroc
    assert (summary["threshold"], summary["title"]) == (0.4, "Evaluation of plates & <lids>")
    rows = list(csv.DictReader((tmp_path / "r/scores.csv").open(newline="")))
    assert [row["image"] for row in rows] == [record.name for record in evaluation.records]
    assert [float(row["score"]) for row in rows] == [record.score for record in evaluation.records]
    assert [int(row["rejected"]) for row in rows] == [int(record.score > 0.4) for record in evaluation.records]
    write_report(tmp_path / "r", evaluation)
    assert "rejected" not in (tmp_path / "r/scores.csv").read_text()


@pytest.mark.parametrize(("good", "defect", "marked"), [(3, 0, True), (0, 3, True), (2, 2, False), (1, 1, True)])
def test_partial_sets_make_a_whole_page(tmp_path: Path, good: int, defect: int, marked: bool) -> None:
    text = write_report(tmp_path / "r", make_evaluation(tmp_path, good, defect, marked)).read_text("utf-8")
    Tags(text)
    assert ("Undefined" in text) == (not (good and defect and marked))
    assert ("Worst misses" in text, "Worst false alarms" in text) == (defect > 0, good > 0)


def test_constant_maps_and_scores(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path, 2, 2)
    flat = [np.zeros((32, 32), np.float32)] * 4
    records = tuple(Record(r.path, r.name, r.kind, r.label, 0.0, 0.0) for r in evaluation.records)
    metrics = compute_metrics([0, 0, 1, 1], [0.0] * 4, flat, evaluation.masks)
    constant = Evaluation("p", "mvtec", records, tuple(flat), evaluation.masks, metrics, {}, (), 0.0)
    assert metrics.aupro_30 == pytest.approx(0.15)
    Tags(write_report(tmp_path / "r", constant, threshold=0.0).read_text("utf-8"))


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path, 1, 1)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        write_report(tmp_path / "file", evaluation)
    (tmp_path / "r/metrics.json").mkdir(parents=True)
    with pytest.raises(DataError, match="regular file"):
        write_report(tmp_path / "r", evaluation)
    assert not (tmp_path / "r/index.html").exists()


def test_charts_follow_the_page_and_are_reproducible() -> None:
    charts = draw_charts(Curves(), [0.1, 0.2], [0.5], 0.3)
    assert list(charts) == ["Image scores"]
    assert charts == draw_charts(Curves(), [0.1, 0.2], [0.5], 0.3)
    drawing = charts["Image scores"]
    root = ElementTree.fromstring(drawing)
    assert {"viewBox", "role", "aria-label"} <= set(root.attrib)
    assert not {"width", "height"} & set(root.attrib)
    assert "var(--ink)" in drawing
    assert "#010101" not in drawing
    assert "threshold 0.3" in "".join(root.itertext())
