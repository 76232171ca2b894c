"""The benchmark's rows: one file for each method, seed and setting; and the table made of all of them.

A row that was measured is never measured again; one that failed is kept, shown, and tried again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

#: Metrics of the table with their headings, in the order of its columns.
COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro_30": "AU-PRO 0.3",
    "aupro_5": "AU-PRO 0.05",
}

_HEADINGS = ("method", "seeds", "input", "budget", *COLUMNS.values(), "minutes", "GiB")


@dataclass(frozen=True)
class Row:
    """One method on one data set with one seed.

    `settings` is all that decides the outcome and that names the row; it has `data`, `split`, `method`, `family`
    (`ours` or `peer`), `seed`, `size` and `budget`.  `metrics` are in [0, 1], None where undefined; they are empty
    where `error` says why there are none.  `details` are for people.
    """

    settings: dict[str, Any]
    metrics: dict[str, float | None] = field(default_factory=dict)
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def row_name(settings: dict[str, Any]) -> str:
    """Return the name of the row with these settings: readable, and different for different settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    words = f"{settings['data']}-{settings['method']}-s{settings['seed']}-{digest}"
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in words)


def read_row(folder: Path, settings: dict[str, Any]) -> Row | None:
    """Return the row with these settings if it was measured or tried, else None."""
    path = folder / f"{row_name(settings)}.json"
    return Row(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_row(folder: Path, row: Row) -> None:
    """Write a row, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{row_name(row.settings)}.json", json.dumps(vars(row), indent=2, allow_nan=False))


def read_rows(folder: Path) -> list[Row]:
    """Return every row in `folder`, in the order of their names."""
    return [Row(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


def write_tables(out: Path, rows: Sequence[Row]) -> str:
    """Write `table.md` and `table.json` into `out`, atomically; return the former's text."""
    text = render(rows)
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "table.md", text)
    _replace(
        out / "table.json", json.dumps([summary for group in groups(rows).values() for summary in group], indent=2)
    )
    return text


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return what is compared with each other: by data set and split, a summary for each method, ours first."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        alike = {name: value for name, value in row.settings.items() if name != "seed"}
        lines.setdefault(json.dumps(alike, sort_keys=True), []).append(row)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for alike_rows in lines.values():
        settings = alike_rows[0].settings
        found.setdefault((settings["data"], settings["split"]), []).append(_summary(alike_rows))
    return {
        key: sorted(found[key], key=lambda line: (line["family"] != "ours", line["method"], str(line["size"])))
        for key in sorted(found)
    }


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Sum up the seeds of one method: mean, and standard deviation from two seeds on."""
    settings = {name: value for name, value in rows[0].settings.items() if name != "seed"}
    measured = [row for row in rows if not row.error]
    metrics: dict[str, dict[str, float] | None] = {}
    for name in COLUMNS:
        values = [value for row in measured if (value := row.metrics.get(name)) is not None]
        metrics[name] = {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0} if values else None
    details = {
        name: fmean(row.details[name] for row in measured)
        for name in ("minutes", "peak_memory_gib", "seconds_per_image")
        if measured and all(row.details.get(name) is not None for row in measured)
    }
    return {
        **settings,
        "seeds": sorted(row.settings["seed"] for row in measured),
        "failed": {str(row.settings["seed"]): row.error for row in rows if row.error},
        "metrics": metrics,
        **details,
    }


def render(rows: Sequence[Row]) -> str:
    """Return the tables in Markdown: for each data set all methods, then ours against the best peer."""
    parts = [
        "Mean ± standard deviation over the seeds, in percent; bold is the best of a column.  Last step of each "
        "training, nothing chosen on the test set.\n"
    ]
    for (data, split), lines in groups(rows).items():
        parts.append(f"\n## {data}{f', {split}' if split else ''}\n")
        parts.append(_markdown(_HEADINGS, [_cells(line, lines) for line in lines]))
        for line in lines:
            for seed, error in line["failed"].items():
                parts.append(f"\n{line['method']}, seed {seed}, has no result: {error}\n")
        parts.append(_against_peers(lines))
    return "".join(parts)


def _cells(line: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    name = line["method"] if line["family"] == "ours" else f"{line['method']} (peer)"
    cells = [name, str(len(line["seeds"])), str(line["size"]), str(line["budget"])]
    for metric in COLUMNS:
        value = line["metrics"][metric]
        if value is None:
            cells.append("—")
            continue
        best = max(other["metrics"][metric]["mean"] for other in lines if other["metrics"][metric])
        text = f"{100 * value['mean']:.2f}"
        text = f"**{text}**" if text == f"{100 * best:.2f}" else text
        cells.append(f"{text} ± {100 * value['std']:.2f}" if len(line["seeds"]) > 1 else text)
    cells.append(f"{line['minutes']:.1f}" if "minutes" in line else "—")
    cells.append(f"{line['peak_memory_gib']:.1f}" if "peak_memory_gib" in line else "—")
    return cells


def _against_peers(lines: Sequence[dict[str, Any]]) -> str:
    """Return, for each of ours, how far it lies above (+) or below (−) the best peer in each metric."""
    ours = [line for line in lines if line["family"] == "ours" and line["seeds"]]
    peers = [line for line in lines if line["family"] == "peer" and line["seeds"]]
    if not ours or not peers:
        return ""
    body = []
    for line in ours:
        cells = [line["method"]]
        for metric in COLUMNS:
            known = [(peer["metrics"][metric]["mean"], peer["method"]) for peer in peers if peer["metrics"][metric]]
            if line["metrics"][metric] is None or not known:
                cells.append("—")
                continue
            best, name = max(known)
            gain = 100 * (line["metrics"][metric]["mean"] - best)
            cells.append(f"{gain:+.2f} ({name})".replace("-", "−", 1 if gain < 0 else 0))
        body.append(cells)
    table = _markdown(("ours less the best peer, points", *COLUMNS.values()), body)
    return f"\n{table}"


def _markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *body))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
