"""The report of an evaluation: one HTML page that needs nothing else, and the same figures as JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from edge import __version__
from edge.errors import DataError
from edge.files import atomic_write
from edge.frames import F32, U8
from edge.images import read_image
from edge.overlay import heat_overlay
from train.charts import draw_charts
from train.datasets import Mask
from train.evaluate import Evaluation, Record
from train.metrics import METRIC_NAMES, compute_curves

#: Examples shown of misses and of false alarms, each.
EXAMPLES = 8

_PICTURE_PX = 320
_TRUTH_BGR = (255, 255, 0)

_PRO_TITLES = ("AU-PRO, FPR ≤ 0.3", "AU-PRO, FPR ≤ 0.05")

_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1c2430; --soft: #5c6675;
  --line: #dfe3e9; --good: #2470b3; --defect: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --soft: #9aa5b4;
  --line: #323b47; --good: #6cb1ea; --defect: #f0955a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 14px; margin: 0 0 8px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 12px; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
.grid { display: grid; gap: 14px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.examples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); }
.charts svg { display: block; width: 100%; height: auto; }
.charts svg text { font-family: inherit !important; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td.big { font-size: 20px; font-weight: 600; }
.wide { overflow-x: auto; }
.pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; }
.pictures figure { margin: 0; }
.pictures img { display: block; width: 100%; border-radius: 5px; }
.pictures figcaption { font-size: 12px; color: var(--soft); margin-top: 3px; }
.name { overflow-wrap: anywhere; font-weight: 600; }
.good { color: var(--good); } .defect { color: var(--defect); } .good, .defect { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_report(
    directory: Path | str,
    evaluation: Evaluation,
    title: str = "",
    *,
    threshold: float | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write `index.html`, `metrics.json` and `scores.csv` into `directory` and return the page's path.

    Args:
        directory: made where it does not exist; each file replaces an older one as a whole, the page last.
        evaluation: what to report.
        title: heading of the page; the data set's name where empty.
        threshold: image-score threshold; an image is rejected when its score exceeds it.
        facts: more lines for "The run", by name.

    Raises:
        DataError: the directory cannot be written.
    """
    folder = Path(directory)
    title = title or f"Evaluation of {evaluation.dataset}"
    page = _page(evaluation, title, threshold, facts or {})
    summary = evaluation.summary() | {"title": title, "threshold": threshold, "facts": dict(facts or {})}
    files = {
        "scores.csv": _scores_csv(evaluation.records, threshold),
        "metrics.json": json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "index.html": page,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with atomic_write(folder / name) as file:
                # A file name that is no valid UTF-8 must not cost the report.
                file.write(text.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"report {folder}: {error.strerror or error}", "choose another folder") from error
    return folder / "index.html"


def _scores_csv(records: Sequence[Record], threshold: float | None) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rejected = [] if threshold is None else ["rejected"]
    writer.writerow(["image", "kind", "label", "score", "peak", *rejected])
    for record in records:
        verdict = [] if threshold is None else [int(record.score > threshold)]
        writer.writerow([record.name, record.kind, record.label, repr(record.score), repr(record.peak), *verdict])
    return text.getvalue()


def _page(evaluation: Evaluation, title: str, threshold: float | None, facts: Mapping[str, str]) -> str:
    records = evaluation.records
    labels = [record.label for record in records]
    scores = [record.score for record in records]
    good = [record.score for record in records if record.label == 0]
    defect = [record.score for record in records if record.label != 0]
    curves = compute_curves(labels, scores, evaluation.maps, evaluation.masks)
    charts = "".join(
        f'<section class="card"><h3>{escape(name)}</h3>{svg}</section>'
        for name, svg in draw_charts(curves, good, defect, threshold).items()
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>
<h1>{escape(title)}</h1>
<p class="soft">{len(good)} good and {len(defect)} defect images of {escape(evaluation.dataset)}</p>
<h2>Metrics</h2>{_metrics_table(evaluation)}{_decisions(good, defect, threshold)}
<h2>Curves</h2><div class="grid charts">{charts}</div>
<h2>By kind</h2>{_kinds_table(evaluation, threshold)}
{_galleries(evaluation, threshold)}
<h2>The run</h2>{_run_facts(evaluation, threshold, facts)}
</main></body></html>
"""


def _metrics_table(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    head = "".join(f"<th>{name}</th>" for name in ("AUROC", "Average precision", "F1-max", *_PRO_TITLES))
    rows = []
    for level, names in (("image", METRIC_NAMES[:3]), ("pixel", METRIC_NAMES[3:])):
        cells = "".join(f'<td class="big">{_percent(getattr(metrics, name))}</td>' for name in names)
        rows.append(f"<tr><td>{level}</td>{cells}{'<td></td>' * (5 - len(names))}</tr>")
    reasons = sorted({f"{name.split('_')[0]} level: {reason}" for name, reason in metrics.reasons.items()})
    note = f'<p class="soft">Undefined: {escape("; ".join(reasons))}.</p>' if reasons else ""
    return f'<div class="card wide"><table><tr><th>Level</th>{head}</tr>{"".join(rows)}</table>{note}</div>'


def _decisions(good: Sequence[float], defect: Sequence[float], threshold: float | None) -> str:
    if threshold is None:
        return ""
    found = sum(score > threshold for score in defect)
    rejected = sum(score > threshold for score in good)
    return (
        f'<p style="margin-top:14px">At the threshold {threshold:.4g}: '
        f'<span class="defect">{_share(found, len(defect))} of the defects found</span>, '
        f'<span class="good">{_share(rejected, len(good))} of the good images rejected</span>.</p>'
    )


def _kinds_table(evaluation: Evaluation, threshold: float | None) -> str:
    extra = "" if threshold is None else "<th>Rejected</th>"
    rows = []
    for name, kind in evaluation.kinds.items():
        cells = f"<td>{kind.images}</td><td>{kind.mean_score:.4g}</td><td>{_percent(kind.image_auroc)}</td>"
        if threshold is not None:
            rejected = sum(record.score > threshold for record in evaluation.records if record.kind == name)
            cells += f"<td>{_share(rejected, kind.images)}</td>"
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    head = f"<tr><th>Kind</th><th>Images</th><th>Mean score</th><th>Image AUROC against good</th>{extra}</tr>"
    return f'<div class="card wide"><table>{head}{"".join(rows)}</table></div>'


def _run_facts(evaluation: Evaluation, threshold: float | None, facts: Mapping[str, str]) -> str:
    images = evaluation.summary()["images"]
    rows = {
        "Data set": f"{evaluation.dataset} (layout {evaluation.layout})",
        "Images": f"{images['good']} good, {images['defect']} defect, {images['defect_with_mask']} of them with a mask",
        "Unreadable": ", ".join(evaluation.skipped) or "none",
        "Time per image": f"{evaluation.seconds_per_image * 1000:.1f} ms (median, scoring alone)",
        "Threshold": "none given" if threshold is None else f"{threshold:.6g}",
        **facts,
        "Written by": f"redi-edge {__version__}",
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    return f'<div class="card"><dl>{lines}</dl></div>'


@dataclass(frozen=True)
class _HeatScale:
    """Map values of no colour and of the hottest colour, the same for all pictures so that they compare."""

    floor: float
    ceiling: float

    @classmethod
    def of(cls, evaluation: Evaluation, threshold: float | None) -> _HeatScale:
        # Full colour means: above the threshold, or above what good parts show.  Quantiles need no more than a sparse
        # grid of each map.
        sparse = [anomaly_map[::4, ::4].ravel() for anomaly_map in evaluation.maps]
        good = [values for values, record in zip(sparse, evaluation.records, strict=True) if record.label == 0]
        values = np.concatenate(good or sparse)
        floor = float(np.median(values))
        ceiling = float(np.quantile(values, 0.999)) if threshold is None else threshold
        return cls(floor, max(ceiling, floor + 1e-6))

    def draw(self, image: U8, anomaly_map: F32) -> U8:
        return heat_overlay(image, np.maximum(anomaly_map - self.floor, 0.0), self.ceiling - self.floor)


def _galleries(evaluation: Evaluation, threshold: float | None) -> str:
    order = sorted(range(len(evaluation.records)), key=lambda index: evaluation.records[index].score)
    misses = [index for index in order if evaluation.records[index].label != 0][:EXAMPLES]
    alarms = [index for index in reversed(order) if evaluation.records[index].label == 0][:EXAMPLES]
    scale = _HeatScale.of(evaluation, threshold)
    parts = []
    for heading, text, chosen in (
        ("Worst misses", "The defect images with the lowest scores; the true region is outlined in cyan.", misses),
        ("Worst false alarms", "The good images with the highest scores.", alarms),
    ):
        if chosen:
            examples = "".join(_example(evaluation, index, scale, threshold) for index in chosen)
            note = f'<p class="soft">{text} Full colour is a map value of {scale.ceiling:.4g} in all pictures.</p>'
            parts.append(f'<h2>{heading}</h2>{note}<div class="grid examples">{examples}</div>')
    return "".join(parts)


def _example(evaluation: Evaluation, index: int, scale: _HeatScale, threshold: float | None) -> str:
    record, mask = evaluation.records[index], evaluation.masks[index]
    image = read_image(record.path)
    shrink = min(1.0, _PICTURE_PX / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    pictures = {"image": image, "anomaly map": scale.draw(image, evaluation.maps[index])}
    if record.label != 0 and mask is not None:
        pictures["truth"] = _outlined(image, mask)
    verdict = ""
    if threshold is not None:
        rejected = record.score > threshold
        right = rejected == (record.label != 0)
        colour, word = ("good", "right") if right else ("defect", "wrong")
        verdict = f' · <span class="{colour}">{"rejected" if rejected else "accepted"}, {word}</span>'
    figures = "".join(
        f'<figure><img alt="{name}" src="{_data_uri(picture)}"><figcaption>{name}</figcaption></figure>'
        for name, picture in pictures.items()
    )
    return (
        f'<section class="card"><div class="name">{escape(record.name)}</div>'
        f'<p class="soft">{escape(record.kind)} · score {record.score:.4g} · peak {record.peak:.4g}{verdict}</p>'
        f'<div class="pictures">{figures}</div></section>'
    )


def _outlined(image: U8, mask: Mask) -> U8:
    height, width = image.shape[:2]
    stretched = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(stretched, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture: U8 = image.copy()
    # A dark rim keeps the outline visible on bright parts.
    cv2.drawContours(picture, contours, -1, (0, 0, 0), 4)
    cv2.drawContours(picture, contours, -1, _TRUTH_BGR, 2)
    return picture


def _data_uri(picture: U8) -> str:
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole}" + (f" ({100 * part / whole:.1f} %)" if whole else "")
