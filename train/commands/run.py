"""`train-run`: photographs of good parts in, a trained model out."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from edge.cli import command, console, positive_number, require_extra, whole_number
from edge.errors import UsageError
from edge.manifest import InputSpec
from train.commands import NEEDED

EPILOG = """\
examples:
  train-run photos/good --out runs/cap --minutes 10
  train-run mvtec/bottle --out runs/bottle --weights resnet18.pth --seed 1
  train-run visa --category candle --out runs/candle --weights self

Stop with Ctrl-C at any time: the same command resumes where it stopped, also after a crash.

exit codes: 0 trained; 2 usage; 7 images or weights cannot be used; 10 the run cannot start, resume or continue;
130 interrupted (resume with the same command)
"""


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    p = argparse.ArgumentParser(
        prog="train-run",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("data", metavar="DATA", help="a folder of good photographs, or a data set (see docs/datasets.md)")
    p.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run's folder; made, or resumed")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=positive_number, metavar="M", help="fit the schedule to this much wall time")
    budget.add_argument("--epochs", type=whole_number, metavar="N", help="passes of the recover stage (default: 30)")
    p.add_argument("--seed", type=int, default=0, help="same seed, images and epochs: same model (0)")
    p.add_argument(
        "--weights",
        default="auto",
        metavar="auto|FILE|self",
        help="ImageNet weights from cache or download (auto), from a state dict (FILE), "
        "or features learnt on these images without any download (self)",
    )
    p.add_argument(
        "--layout",
        default="auto",
        help="mvtec, folder, visa, kolektorsdd or kolektorsdd2, where it is not recognised (auto)",
    )
    p.add_argument("--category", help="category of a data set that holds several")
    p.add_argument("--size", default="256", metavar="S|WxH", help="input size, multiples of 32 (256)")
    p.add_argument("--prompts", type=whole_number, default=32, metavar="K", help="images in the prompt bank (32)")
    p.add_argument("--batch", type=int, default=8, help="images per step (8)")
    p.add_argument("--learning-rate", type=positive_number, default=1e-3, help="peak of the schedule (0.001)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    p.add_argument("--threads", type=whole_number, metavar="T", help="CPU threads (all cores)")
    p.add_argument("--restart", action="store_true", help="discard what RUN holds and start afresh")
    return p


def input_size(text: str) -> tuple[int, int]:
    """Parse `S` or `WxH` into `(height, width)`.

    Raises:
        UsageError: not numbers, not multiples of 32, or out of range.
    """
    parts = text.lower().split("x")
    try:
        width, height = (int(parts[0]), int(parts[-1]))
    except ValueError:
        raise UsageError(f"--size {text}: not a size", "give 256, or 512x256 for width and height") from None
    if len(parts) > 2 or any(side % 32 or not 64 <= side <= 2048 for side in (width, height)):
        raise UsageError(f"--size {text}: sides must be multiples of 32 from 64 to 2048", "try 256")
    return height, width


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: a seed is not negative", "try 0")
    if args.batch < 2:
        raise UsageError(f"--batch {args.batch}: batch norms need at least 2 images", "try 8")
    height, width = input_size(args.size)
    require_extra("train", *NEEDED)

    import torch

    from train.config import TrainConfig
    from train.pipeline import train
    from train.runfolder import RunFolder

    if args.threads:
        torch.set_num_threads(args.threads)
    folder = RunFolder(args.out)
    if args.restart and folder.started:
        console.print(f"{args.out}: discarding the earlier run")
        shutil.rmtree(args.out)
    train(
        folder,
        TrainConfig(
            data=str(Path(args.data).resolve()),
            category=args.category,
            layout=args.layout,
            weights=args.weights,
            seed=args.seed,
            minutes=args.minutes,
            epochs=args.epochs,
            input=InputSpec(height=height, width=width),
            batch=args.batch,
            prompts=args.prompts,
            learning_rate=args.learning_rate,
        ),
        args.device,
    )
    return 0
