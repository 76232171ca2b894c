"""The ablation's table: variants against data sets, mean and spread over seeds, as Markdown and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from edge import __version__
from edge.errors import DataError, UsageError
from edge.files import atomic_write
from train.ablation import Trained

#: Columns for each data set: the evaluation's name of the figure, and ours.
COLUMNS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_30": "AU-PRO 0.3"}

BEGIN, END = "<!-- table: written by train-ablate -->", "<!-- end of table -->"


def summarise(
    trained: Sequence[Trained], grid: Mapping[str, Sequence[str]], seeds: Sequence[int], command: str
) -> dict[str, Any]:
    """Return all there is to say, ready for JSON; `command` is how it was called."""
    datasets = list(dict.fromkeys(one.outcome.product for one in trained))
    return {
        "command": command,
        "written_by": f"redi-edge {__version__}",
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seeds": list(seeds),
        "datasets": datasets,
        "variants": [
            {
                "name": name,
                "changes": list(words),
                "results": {dataset: _results(trained, name, dataset) for dataset in datasets},
            }
            for name, words in grid.items()
        ],
    }


def _results(trained: Sequence[Trained], variant: str, dataset: str) -> dict[str, Any]:
    mine = [one for one in trained if (one.training.variant, one.outcome.product) == (variant, dataset)]
    measured = [one.outcome.metrics for one in mine if one.outcome.metrics is not None]
    figures = {}
    for metric in COLUMNS:
        values = [value for metrics in measured if (value := metrics[metric]) is not None]
        figures[metric] = {
            "mean": fmean(values) if values else None,
            "std": stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
    runs = [
        {
            "seed": one.outcome.seed,
            "error": one.outcome.error,
            "metrics": one.outcome.metrics,
            "seconds": one.outcome.seconds,
            "taken_over": one.training.reused,
        }
        for one in mine
    ]
    return {"figures": figures, "runs": runs}


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the table of a summary, in per cent, under the command that makes it."""
    datasets, seeds = summary["datasets"], summary["seeds"]
    over = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    groups = [*datasets, "mean of all sets"] if len(datasets) > 1 else list(datasets)
    head = [
        f"{group}: {title}" if not place else title for group in groups for place, title in enumerate(COLUMNS.values())
    ]
    lines = [
        f"    {summary['command']}",
        "",
        f"Per cent, {over}, last step; nothing is chosen on the test images. {summary['written_by']}, "
        f"{summary['written'][:10]}.",
        "",
        f"| variant | {' | '.join(head)} |",
        f"|---|{'---|' * len(head)}",
    ]
    for variant in summary["variants"]:
        results = [variant["results"][dataset]["figures"] for dataset in datasets]
        cells = [_figure(figures[metric], len(seeds)) for figures in results for metric in COLUMNS]
        if len(datasets) > 1:
            means = [[figures[metric]["mean"] for figures in results] for metric in COLUMNS]
            cells += ["–" if None in values else f"{100 * fmean(values):.2f}" for values in means]
        changes = f" (`{' '.join(variant['changes'])}`)" if variant["changes"] else ""
        lines.append(f"| {variant['name']}{changes} | {' | '.join(cells)} |")
    failures = [
        f"- {dataset}, {variant['name']}, seed {run['seed']}: {run['error']}"
        for variant in summary["variants"]
        for dataset in datasets
        for run in variant["results"][dataset]["runs"]
        if run["error"]
    ]
    if failures:
        lines += ["", "Failed, and left out of the means; the same command tries them again:", "", *failures]
    return "\n".join(lines) + "\n"


def _figure(figure: Mapping[str, Any], seeds: int) -> str:
    if figure["mean"] is None:
        return "–"
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.2f}"
    fewer = "" if figure["seeds"] == seeds else f" ({figure['seeds']} of {seeds})"
    return f"{100 * figure['mean']:.2f}{spread}{fewer}"


def write_table(folder: Path, summary: Mapping[str, Any]) -> str:
    """Write `ablation.json` and `ablation.md` into `folder`; return the latter's text.

    Raises:
        DataError: they cannot be written.
    """
    text = markdown(summary)
    files = {"ablation.json": json.dumps(summary, indent=2, allow_nan=False) + "\n", "ablation.md": text}
    try:
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}", "free some space, or choose another --out") from error
    return text


def split_page(page: Path) -> tuple[str, str]:
    """Return what stands before and after the table in a page that has a place for it.

    Raises:
        UsageError: the page cannot be read, or has no such place.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--into {page}: {getattr(error, 'strerror', None) or error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"--into {page}: no place for the table", f"write {BEGIN} and {END} on lines of their own")
    return before, after


def write_into(page: Path, table: str) -> None:
    """Put the table in its place in a page, in the stead of an earlier one."""
    before, after = split_page(page)
    with atomic_write(page) as file:
        file.write(f"{before}{BEGIN}\n{table}{END}{after}".encode())
