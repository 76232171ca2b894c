"""The whole line on real images, by the product's own commands: how accurate are the events that a subscriber gets?

    python tests/benchmarks/bench_line.py DATA --weights FILE [--minutes 10] [--seed 0] [--work DIR] [--json]

DATA has the MVTec AD layout.  The last `--calibrate` good training images are kept out of training and set the
threshold; test images are used for the figures alone.  Steps: train-run, train-eval, train-export, calib-threshold,
then edge-run on the test folder with edge-watch subscribed.  Printed: metrics of train-eval, image AUROC from the
events, verdicts at the calibrated threshold, and the largest difference between PyTorch's scores and the events'.
"""

from __future__ import annotations

import argparse
import csv
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

BIN = Path(sys.executable).parent


def run(*words: str | Path) -> str:
    """Run one of the product's commands and return its stdout; its progress goes to this terminal."""
    Console(stderr=True).print(f"[cyan]$ {' '.join(str(word) for word in words)}[/]")
    done = subprocess.run([BIN / words[0], *words[1:]], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with exit code {done.returncode}")
    return done.stdout


def split(data: Path, work: Path, calibrate: int) -> tuple[Path, Path]:
    """Link DATA into two folders: a data set whose last `calibrate` good images are missing, and those images."""
    train, good = work / "data", work / "calibration"
    (train / "train" / "good").mkdir(parents=True)
    good.mkdir()
    images = sorted((data / "train" / "good").iterdir())
    for number, image in enumerate(images):
        folder = train / "train" / "good" if number < len(images) - calibrate else good
        (folder / image.name).symlink_to(image.resolve())
    for name in ("test", "ground_truth"):
        (train / name).symlink_to((data / name).resolve())
    return train, good


def events_of(plan: Path, folder: Path, work: Path) -> list[dict[str, Any]]:
    """Run the station on a folder with a subscriber that waits already; return the events."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    log = work / "events.jsonl"
    with log.open("w", encoding="utf-8") as file:
        watch = [BIN / "edge-watch", endpoint, "--json", "--until-stopped", "--idle", "120"]
        subscriber = subprocess.Popen(watch, stdout=file)
        run("edge-run", "--camera", folder, "--engine", plan, "--publish", endpoint, "--journal", "none")
        subscriber.wait(timeout=60)
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the line and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--minutes", default="10")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--calibrate", type=int, default=59, help="good images kept for the threshold (59)")
    parser.add_argument("--false-reject", default="0.01")
    parser.add_argument("--work", type=Path, help="keep everything here; default: a folder that is removed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = options.work or Path(temporary)
        data, good = split(options.data, work, options.calibrate)
        trained, plan = work / "run", work / "redi.plan"
        begin = time.monotonic()
        budget = ("--minutes", options.minutes, "--seed", options.seed)
        run("train-run", data, "--out", trained, "--weights", options.weights, *budget)
        minutes = (time.monotonic() - begin) / 60
        evaluation = json.loads(run("train-eval", trained, data, "--json", "--report", work / "report"))
        run("train-export", trained, "--out", plan)
        run("calib-threshold", plan, "--good", good, "--false-reject", options.false_reject)
        events = events_of(plan, data / "test", work)
        with (work / "report" / "scores.csv").open(encoding="utf-8", newline="") as file:
            torch_scores = {
                Path(row["image"]).relative_to("test").as_posix(): float(row["score"]) for row in csv.DictReader(file)
            }
    defect = [not event["source"].startswith("good/") for event in events]
    rejected = [event["verdict"] != "ok" for event in events]
    threshold = events[0]["threshold"]
    found = sum(r for r, d in zip(rejected, defect, strict=True) if d)
    figures = {
        "training_minutes": round(minutes, 2),
        **{name: value for name, value in evaluation["metrics"].items() if isinstance(value, float)},
        "events": len(events),
        "image_auroc_from_events": roc_auc_score(defect, [event["score"] for event in events]),
        "threshold": threshold,
        "defects_rejected": f"{found} of {sum(defect)}",
        "good_rejected": f"{sum(rejected) - found} of {len(defect) - sum(defect)}",
        "largest_difference_to_torch_in_thresholds": max(
            abs(event["score"] - torch_scores[event["source"]]) / threshold for event in events
        ),
    }
    if options.json:
        print(json.dumps(figures))
        return 0
    table = Table(title=f"{options.data.name}, {options.minutes} minutes, seed {options.seed}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
