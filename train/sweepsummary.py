"""A sweep summed up: JSON for machines, Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec

from edge.errors import TrainingError
from edge.files import atomic_write
from train.sweepjob import Outcome

#: What summaries show, of all that train-eval measures.
SHOWN = ("image_auroc", "pixel_auroc", "aupro_30", "aupro_5")


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the sweep's results, ready for JSON: every run, and mean and spread over seeds of every product."""
    products: dict[str, Any] = {}
    for name in dict.fromkeys(outcome.product for outcome in outcomes):
        measured = [o.metrics for o in outcomes if o.product == name and o.metrics is not None]
        values = {m: [r[m] for r in measured] for m in (measured[0] if measured else ())}
        products[name] = {
            metric: {"mean": fmean(row), "spread": stdev(row) if len(row) > 1 else 0.0, "runs": len(row)}
            for metric, found in values.items()
            if (row := [v for v in found if v is not None])
        }
    states = [outcome.state for outcome in outcomes]
    return {
        "counts": {state: states.count(state) for state in ("done", "failed", "interrupted", "waiting")},
        "products": products,
        "runs": [msgspec.to_builtins(outcome) for outcome in outcomes],
    }


def write_summary(out: Path, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write `summary.json` and `summary.md` into `out` and return the former's content.

    Raises:
        TrainingError: they cannot be written.
    """
    summary = summarise(outcomes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / "summary.json") as file:
            file.write(msgspec.json.format(msgspec.json.encode(summary), indent=2))
        with atomic_write(out / "summary.md") as file:
            file.write(_markdown(summary).encode())
    except OSError as error:
        raise TrainingError(f"{out}: {error.strerror}", "choose another --out") from error
    return summary


def _markdown(summary: Mapping[str, Any]) -> str:
    counts = summary["counts"]
    lines = ["# Sweep", "", ", ".join(f"{number} {state}" for state, number in counts.items() if number), ""]
    measured = {name: row for name, row in summary["products"].items() if row}
    if measured:
        lines += [
            "Mean ± standard deviation over seeds.",
            "",
            "| product | runs | " + " | ".join(name.replace("_", " ") for name in SHOWN) + " |",
            "|---|---|" + "---|" * len(SHOWN),
        ]
        for name, row in measured.items():
            runs = max(cell["runs"] for cell in row.values())
            lines.append(f"| {name} | {runs} | " + " | ".join(format_cell(row.get(m)) for m in SHOWN) + " |")
        means = [[row[m]["mean"] for row in measured.values() if m in row] for m in SHOWN]
        cells = [f"{fmean(column):.4f}" if column else "—" for column in means]
        lines.append("| **mean** | | " + " | ".join(cells) + " |")
    failed = [run for run in summary["runs"] if run["state"] == "failed"]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {r['product']}, seed {r['seed']} (exit code {r['exit_code']}): {r['error']}" for r in failed]
    return "\n".join(lines) + "\n"


def format_cell(cell: Mapping[str, float] | None) -> str:
    """Return a metric's mean and, over several runs, its spread."""
    if cell is None:
        return "—"
    return f"{cell['mean']:.4f}" + (f" ± {cell['spread']:.4f}" if cell["runs"] > 1 else "")
