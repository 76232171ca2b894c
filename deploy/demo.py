"""The whole product on the simulated line: photographs → training → one file → calibration → verdicts at a subscriber.

Every step is a command of the product, shown as it is run.  What they made stays in demo-out/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.text import Text

from edge.cameras.sim import SimLine
from edge.cli import command, console
from edge.errors import EdgeError

BIN = Path(sys.executable).parent
LINE_SEED = 70
PARTS = 80
DEFECTS = 0.3


def run(*words: str | Path) -> None:
    """Show a command, run it, and end the demo where it fails."""
    console.print(f"\n[bold cyan]$ {' '.join(str(word) for word in words)}[/]")
    done = subprocess.run([BIN / words[0], *words[1:]], check=False)
    if done.returncode:
        raise EdgeError(f"{words[0]} ended with exit code {done.returncode}", "its own message is above")


def free_endpoint() -> str:
    """Return a loopback endpoint that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def show_picture(path: Path, columns: int = 76) -> None:
    """Show an image in a colour terminal, two pixels to a character."""
    image = cv2.imread(str(path))
    if image is None:
        return
    rows = round(image.shape[0] / image.shape[1] * columns / 2) * 2
    small = cv2.cvtColor(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        line = Text()
        for (r, g, b), (u, v, w) in zip(upper.tolist(), lower.tolist(), strict=True):
            line.append("▀", style=f"rgb({r},{g},{b}) on rgb({u},{v},{w})")
        console.print(line)


def inspect_line(plan: Path, out: Path) -> list[dict[str, Any]]:
    """Start a subscriber, then the station on the simulated line; return the events that the subscriber printed."""
    endpoint = free_endpoint()
    camera = f"sim:seed={LINE_SEED},count={PARTS},defects={DEFECTS}"
    log = out / "events.jsonl"
    watch: list[str | Path] = ["edge-watch", endpoint, "--json", "--until-stopped", "--idle", "60"]
    watch += ["--save-overlays", out / "overlays", "--images", camera]
    console.print(f"\n[bold cyan]$ {' '.join(str(word) for word in watch)} > {log} &[/]")
    with log.open("w", encoding="utf-8") as file, (out / "watch.log").open("w", encoding="utf-8") as notes:
        subscriber = subprocess.Popen([BIN / watch[0], *watch[1:]], stdout=file, stderr=notes)
        try:
            run("edge-run", "--camera", camera, "--engine", plan, "--publish", endpoint, "--journal", out / "journal")
            subscriber.wait(timeout=60)
        finally:
            subscriber.kill()
            subscriber.wait()
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def compare_with_truth(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Print how the verdicts compare with what the line really made; return the clearest find."""
    line = SimLine(seed=LINE_SEED, defect_rate=DEFECTS)
    truth = {event["seq"]: line.kind(int(event["source"].rsplit("/", 1)[1])) for event in events}
    defective = [event for event in events if truth[event["seq"]] != "good"]
    good = [event for event in events if truth[event["seq"]] == "good"]
    found = [event for event in defective if event["verdict"] == "ng"]
    rejected = [event for event in good if event["verdict"] != "ok"]
    console.print(
        f"\n[bold]{len(events)} parts, {len(events)} events:[/] "
        f"{len(found)} of {len(defective)} defective parts rejected, {len(rejected)} of {len(good)} good ones"
    )
    for event in defective:
        if event["verdict"] == "ok":
            console.print(f"  missed: {truth[event['seq']]} ({event['source']}), score {event['score']:.3f}")
    console.print(
        "  (after minutes, on features learnt from these photographs alone; see README on --weights and time)"
    )
    return max(found, key=lambda event: event["score"], default=None)


def overlay_of(event: dict[str, Any], folder: Path) -> Path:
    """Return the picture that `edge-watch --save-overlays` made of an event."""
    # By boot and number, as the numbers in other parts' names may look alike.
    return next(folder.glob(f"{event['boot_id'][:8]}-{event['seq']:07d}-*.png"))


@command
def main(argv: list[str] | None = None) -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", default="4", help="training time (4)")
    parser.add_argument("--size", default="128", help="input size (128)")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    args = parser.parse_args(argv)
    begin = time.monotonic()
    out: Path = args.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    photos, trained, plan = out / "photos", out / "run", out / "redi.plan"
    run("edge-sim", photos, "--train", "160", "--test", "0", "--good", "80")
    run(
        "train-run",
        photos / "train" / "good",
        "--out",
        trained,
        "--weights",
        "self",
        "--minutes",
        args.minutes,
        "--size",
        args.size,
    )
    run("train-export", trained, "--out", plan)
    run("calib-threshold", plan, "--good", photos / "good", "--false-reject", "0.02")
    events = inspect_line(plan, out)
    best = compare_with_truth(events)
    if best is None:
        raise EdgeError(
            "no defect was found",
            f"this machine was slow or busy; train longer: {sys.executable} {sys.argv[0]} --minutes 10",
        )
    picture = out / "found-defect.png"
    shutil.copyfile(overlay_of(best, out / "overlays"), picture)
    if console.is_terminal:
        show_picture(picture)
    console.print(f"[bold]a defect that it found:[/] {picture}\n[bold]its event, as the subscriber printed it:[/]")
    shown = {key: value for key, value in best.items() if key != "mask"} | {"mask": f"{best['mask'][:40]}…"}
    Console(soft_wrap=True).print_json(json.dumps(shown), indent=None)
    console.print(f"\ndone in {(time.monotonic() - begin) / 60:.1f} minutes; everything is in {out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
