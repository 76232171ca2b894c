"""Our methods beside the peers' own implementations: same images, backbone weights, input size, split and metrics.

    python tests/benchmarks/accuracy/run.py --setup [--environment DIR] [--python PYTHON]
    python tests/benchmarks/accuracy/run.py DATA... --weights FILE [--methods redi,patchcore,...] [--seeds 3]
    python tests/benchmarks/accuracy/run.py --speed [--threads T] [--precision f32,bf16]

Every method's last step is evaluated; nothing is chosen on the test set.  Each method and seed is a row in OUT/rows;
rows that exist are not run again, so a run that was stopped goes on with the same command.  OUT/table.md and
OUT/table.json hold all rows of OUT.  See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from rich.console import Console

from edge.cli import command, positive_number, whole_number
from edge.errors import UsageError
from tests.benchmarks.accuracy import ours, peers, speed
from tests.benchmarks.accuracy.rows import Row, read_row, read_rows, row_name, write_row, write_tables
from tests.benchmarks.accuracy.splits import Split, marked, whole
from train.commands.run import input_size

#: Our methods, by the name that `train-run --method` takes.
OURS = ("redi", "ckaad", "recon")

#: Ends the name of a method that is given the marked images.
WITH_MARKS = "+coarse"

console = Console(stderr=True, highlight=False)


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", nargs="*", type=Path, metavar="DATA", help="data sets with test images")
    p.add_argument("--weights", metavar="FILE", help="a ResNet's state dict: the backbone of all methods")
    p.add_argument(
        "--methods",
        default=",".join((*OURS, *peers.PEERS)),
        help=f"comma-separated, of {', '.join((*OURS, *peers.PEERS))} (all); ours also as NAME{WITH_MARKS}",
    )
    p.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=OPTIONS",
        help="one more row of ours, with these options of train-run: 'redi 384=--method redi --size 384'; repeatable",
    )
    p.add_argument("--seeds", type=whole_number, default=3, metavar="N", help="seeds 0 to N - 1 (3)")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=positive_number, default=10.0, help="wall time of a training (10)")
    budget.add_argument("--epochs", type=whole_number, help="passes of a training, instead of minutes")
    p.add_argument("--size", default="256", metavar="S|WxH", help="input size of all methods (256)")
    p.add_argument("--coreset", type=positive_number, default=0.01, help="share of patches PatchCore keeps (0.01)")
    p.add_argument("--coarse", metavar="KIND:N", help="mark N images of a defect kind; no method is tested on them")
    p.add_argument("--threads", type=whole_number, metavar="T", help="CPU threads (each method's own choice)")
    p.add_argument("--out", type=Path, default=Path("benchmark-out"), metavar="DIR", help="rows and tables")
    p.add_argument("--setup", action="store_true", help="make the peers' environment, with anomalib, and stop")
    p.add_argument("--environment", type=Path, default=peers.DEFAULT_ENVIRONMENT, metavar="DIR", help="where it is")
    p.add_argument("--python", default=sys.executable, help="the interpreter that --setup builds on (this one)")
    p.add_argument("--speed", action="store_true", help="measure latencies at 256 x 256 in OpenVINO, and stop")
    p.add_argument("--precision", default="f32", help="of --speed: f32, bf16 or both, comma-separated (f32)")
    p.add_argument("--rounds", type=whole_number, default=20, help="turns of every network in --speed (20)")
    p.add_argument("--engine", type=Path, metavar="FILE", help="bundle for --speed (the small size, random weights)")
    return p


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parser().parse_args(argv)
    if args.setup:
        peers.set_up(args.environment, args.python)
        return 0
    if args.speed:
        precisions = args.precision.split(",")
        threads = args.threads or 1
        print(speed.run(args.out, args.environment, args.engine, precisions, threads, args.rounds))
        return 0
    if not args.data or not args.weights:
        raise UsageError("DATA and --weights are needed", "run.py DATA... --weights FILE; see --help")
    print(measure_all(args))
    return 0


def measure_all(args: argparse.Namespace) -> str:
    """Measure every row that is missing; return the table of all."""
    size = input_size(args.size)
    methods = _methods(args)
    rows = args.out / "rows"
    splits = [_split(root, args) for root in args.data]
    total, number = len(splits) * len(methods) * args.seeds, 0
    args.out.mkdir(parents=True, exist_ok=True)
    for split in splits:
        common = _common(split, args)
        # Of this process alone: rows of other methods may be measured into the same folder beside it.
        with TemporaryDirectory(prefix="work-", dir=args.out) as folder:
            work, backbone = Path(folder), ""
            for (name, options), seed in product(methods.items(), range(args.seeds)):
                number += 1
                settings = common | _settings(name, options, seed, args, size)
                known = read_row(rows, settings)
                told = f"row {number} of {total}: {split.dataset.name}, {name}, seed {seed}"
                if known is not None and not known.error:
                    console.print(f"{told}: measured before")
                    continue
                console.print(f"[bold]{told}[/]")
                if options is not None:
                    words = _options(name, options, split, args)
                    row = ours.measure(settings, split, args.out / "runs" / row_name(settings), words)
                else:
                    backbone = backbone or peers.prepare(split, size, args.weights, work)
                    row = peers.measure(settings, split, backbone, work, args.environment, args.threads)
                write_row(rows, row)
                _tell(row)
                write_tables(args.out, read_rows(rows))
    return write_tables(args.out, read_rows(rows))


def _methods(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the methods by name: the options of `train-run` for ours, None for peers.

    Raises:
        UsageError: a name that is unknown, or that needs marks where there are none.
    """
    found: dict[str, str | None] = {}
    for name in filter(None, args.methods.split(",")):
        plain = name.removesuffix(WITH_MARKS)
        if plain in OURS:
            found[name] = f"--method {plain}"
        elif name in peers.PEERS:
            found[name] = None
        else:
            raise UsageError(f"--methods {name}: unknown", f"choose from {', '.join((*OURS, *peers.PEERS))}")
    for variant in args.variant:
        name, equals, options = variant.partition("=")
        if not equals or name in found:
            raise UsageError(f"--variant {variant}: not NAME=OPTIONS with a new name", "'redi 384=--size 384'")
        found[name] = options
    if not args.coarse and any(name.endswith(WITH_MARKS) for name in found):
        raise UsageError(f"methods with {WITH_MARKS} need --coarse KIND:N", "for example --coarse crack:5")
    return found


def _split(root: Path, args: argparse.Namespace) -> Split:
    if not args.coarse:
        return whole(root)
    kind, _, count = args.coarse.rpartition(":")
    if not kind or not count.isdigit():
        raise UsageError(f"--coarse {args.coarse}: not KIND:N", "for example crack:5")
    return marked(root, kind, int(count), args.out / "splits" / f"{root.name}-{kind}-{count}")


def _common(split: Split, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all rows of a split share."""
    weights = Path(args.weights)
    if not weights.is_file():
        raise UsageError(f"{weights}: no such weights file", "--weights takes a state dict")
    return {
        "data": split.dataset.name,
        "split": split.label,
        "images": split.dataset.digest(),
        "weights": f"{weights.name} {hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}",
    }


def _settings(
    name: str, options: str | None, seed: int, args: argparse.Namespace, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the settings of one row, as `Row` wants them."""
    settings: dict[str, Any] = {"method": name, "seed": seed, "size": f"{size[1]}×{size[0]}"}
    if options is None:
        settings |= {"family": "peer", "pixels": list(size), "budget": "one pass"}
        if name == "patchcore":
            settings |= {"coreset": args.coreset, "budget": f"one pass, coreset {args.coreset:g}"}
        if not peers.PEERS[name]:
            return settings
    else:
        settings |= {"family": "ours", "options": options}
        if "--size" in options.split():
            settings["size"] = options.split()[options.split().index("--size") + 1]
    if args.epochs:
        return settings | {"epochs": args.epochs, "budget": f"{args.epochs} epochs"}
    return settings | {"minutes": args.minutes, "budget": f"{args.minutes:g} minutes"}


def _options(name: str, options: str, split: Split, args: argparse.Namespace) -> list[str]:
    """Return the words for `train-run` of one of our rows."""
    words = shlex.split(options)
    words += ["--weights", str(args.weights)]
    if name.endswith(WITH_MARKS):
        words += ["--coarse", str(split.coarse)]
    words += ["--epochs", str(args.epochs)] if args.epochs else ["--minutes", f"{args.minutes:g}"]
    if "--size" not in words:
        words += ["--size", args.size]
    if args.threads:
        words += ["--threads", str(args.threads)]
    return words


def _tell(row: Row) -> None:
    if row.error:
        console.print(f"  [red]no result[/]: {row.error}", markup=True)
        return
    shown = ("image_auroc", "pixel_auroc", "aupro_30")
    values = {name: row.metrics.get(name) for name in shown}
    console.print("  " + ", ".join(f"{name} {'—' if v is None else f'{v:.4f}'}" for name, v in values.items()))


if __name__ == "__main__":
    raise SystemExit(main(None))
