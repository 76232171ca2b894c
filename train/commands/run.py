"""`train-run`: photographs of good parts in, a trained model out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli import CommandParser, command, console, positive_number, require_extra, whole_number
from edge.errors import UsageError
from edge.manifest import MAP_KINDS, CanvasSpec, InputSpec, MapSpec
from train.commands import NEEDED
from train.config import BACKBONES, METHODS, PROMPTS, TrainConfig

if TYPE_CHECKING:
    from train.canvas import CanvasRequest

EPILOG = """\
examples:
  train-run photos/good --out runs/cap --minutes 10
  train-run mvtec/bottle --out runs/bottle --weights resnet18.pth --seed 1
  train-run visa --category candle --out runs/candle --weights self
  train-run photos/good --out runs/cap2 --method ckaad --coarse photos/defects

Stop with Ctrl-C at any time: the same command resumes where it stopped, also after a crash.

exit codes: 0 trained; 2 usage; 7 images or weights cannot be used; 10 the run cannot start, resume or continue;
130 interrupted (resume with the same command)
"""


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    p = CommandParser(
        prog="train-run",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[settings_parser()],
    )
    p.add_argument("data", metavar="DATA", help="a folder of good photographs, or a data set (see docs/datasets.md)")
    p.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run's folder; made, or resumed")
    p.add_argument("--seed", type=int, default=0, help="same seed, images and epochs: same model (0)")
    p.add_argument("--restart", action="store_true", help="discard what RUN holds and start afresh")
    return p


def settings_parser() -> argparse.ArgumentParser:
    """Describe how to train, for every command that trains."""
    p = argparse.ArgumentParser(add_help=False)
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=positive_number, metavar="M", help="fit the schedule to this much wall time")
    budget.add_argument("--epochs", type=whole_number, metavar="N", help="passes of the main stage (redi 30, else 200)")
    budget.add_argument("--steps", type=whole_number, metavar="N", help="of the main stage, however many images")
    p.add_argument(
        "--method",
        choices=METHODS,
        default="redi",
        help="redi; ckaad, which also learns from images with defects; recon, its baseline without them (redi)",
    )
    p.add_argument(
        "--coarse",
        metavar="DIR|split",
        help="images that show a defect somewhere, without masks, for redi and ckaad; split: from the data set's own "
        "training split, a twentieth of all images (default: none; ckaad bends good images out of shape)",
    )
    p.add_argument(
        "--layers",
        type=layer_list,
        default=(1, 2, 3),
        metavar="L,…",
        help="layers of the extractor that ckaad and recon compare: 1,2,3, or 2,3 for medical images (1,2,3)",
    )
    p.add_argument(
        "--backbone",
        choices=("auto", *BACKBONES),
        default="auto",
        help="the extractor: small (resnet18) or large; auto goes by the weights FILE, else takes resnet18",
    )
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
        help="mvtec, folder, visa, … (docs/datasets.md lists them), where it is not recognised (auto)",
    )
    p.add_argument("--category", help="category of a data set that holds several")
    p.add_argument(
        "--size",
        default="256",
        metavar="S|WxH|auto",
        help="input size, multiples of 32 (256); auto: about 256² in the images' aspect",
    )
    p.add_argument(
        "--tiles",
        default="1x1",
        metavar="RxC|auto",
        help="rows x columns of tiles that an image is cut into, each an input (1x1); "
        "auto: as many as keep small things visible",
    )
    p.add_argument(
        "--overlap",
        type=whole_number,
        metavar="PX",
        help="of neighbouring tiles, a multiple of 32 (an eighth of a tile)",
    )
    p.add_argument(
        "--fit",
        choices=("stretch", "pad", "auto"),
        default="stretch",
        help="images of another aspect: stretch them, or keep the aspect and pad; auto: by the images (stretch)",
    )
    p.add_argument("--prompts", type=whole_number, default=32, metavar="K", help="images in the prompt bank (32)")
    p.add_argument("--batch", type=int, help="good images per step (redi 8, others 16)")
    p.add_argument("--learning-rate", type=positive_number, help="peak of the schedule (redi 0.001, others 0.005)")
    ablations = p.add_argument_group("ablations", "parts of ReDi left out or exchanged; train-ablate compares them")
    ablations.add_argument(
        "--map", choices=MAP_KINDS, default="hog", help="what recovery is shown of the test image (hog)"
    )
    ablations.add_argument(
        "--prompt", choices=PROMPTS, default="nearest-hog", help="how prompts are chosen (nearest-hog)"
    )
    ablations.add_argument(
        "--correlation-weight", type=weight, default=1.0, metavar="W", help="of the loss L_S; 0 leaves it out (1)"
    )
    ablations.add_argument(
        "--turned",
        type=transform_list,
        default="auto",
        metavar="auto|none|T,…",
        help="copies of good images that teach too: mirrored, flipped, rotated-180, rotated-90, rotated-270; "
        "auto: those that still look like good images (auto)",
    )
    ablations.add_argument(
        "--altered", action="store_true", help="also copies whose map was altered, to teach recovery to mend them"
    )
    ablations.add_argument(
        "--no-frb", action="store_true", help="compare with the recovered image's features as they are"
    )
    ablations.add_argument(
        "--density-weight", type=weight, default=1.0, metavar="W", help="how much rare features count; 0: not (1)"
    )
    ablations.add_argument(
        "--no-expected", action="store_true", help="take distances as they are where recovery usually does badly, too"
    )
    ablations.add_argument(
        "--no-level", action="store_true", help="count what is unusual as it is, however rough the whole part is"
    )
    ablations.add_argument(
        "--memory",
        type=memory_size,
        default=768,
        metavar="N",
        help="typical features of good parts that every place is compared with; 0: none (768)",
    )
    ablations.add_argument(
        "--no-drawn", action="store_true", help="do not learn from defects that are drawn onto good images"
    )
    ablations.add_argument(
        "--no-evidence", action="store_true", help="let --coarse teach the FRB alone, and do not look for what it shows"
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    p.add_argument("--threads", type=whole_number, metavar="T", help="CPU threads (all cores)")
    return p


def layer_list(text: str) -> tuple[int, ...]:
    """Return the layers that an argument lists; for argparse."""
    layers = tuple(int(part) for part in text.split(",") if part in ("1", "2", "3"))
    if not layers or text != ",".join(map(str, layers)) or layers != tuple(range(layers[0], layers[-1] + 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of neighbouring layers, such as 2,3")
    return layers


def transform_list(text: str) -> str:
    """Return the transforms that an argument lists; for argparse."""
    names = ("mirrored", "flipped", "rotated-180", "rotated-90", "rotated-270")
    if text not in ("auto", "none") and not set(text.split(",")) <= set(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, none, or a list of {', '.join(names)}")
    return text


def memory_size(text: str) -> int:
    """Return the whole number from 0 that an argument is; for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 99999")
    return int(text)


def weight(text: str) -> float:
    """Return the finite number from 0 that an argument is; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def canvas_request(size: str, tiles: str, overlap: int | None, fit: str) -> CanvasRequest:
    """Return what the arguments ask for.

    Raises:
        UsageError: one is not what it should be.
    """
    from train.canvas import CanvasRequest

    grid: tuple[int, int] | None = None
    if tiles != "auto":
        rows, x, columns = tiles.lower().partition("x")
        if not (x and rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            raise UsageError(f"--tiles {tiles}: not rows x columns", "give 2x2, or 1x3 for three tiles side by side")
        grid = int(rows), int(columns)
    return CanvasRequest(None if size == "auto" else input_size(size), grid, overlap, fit)


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


def run_settings(args: argparse.Namespace, input_spec: InputSpec, canvas: CanvasSpec) -> TrainConfig:
    """Return what a run with these arguments is recorded with, for inputs and a canvas that were chosen."""
    from train.coarse import SPLIT
    from train.methods import METHODS as DETECTORS

    usual = DETECTORS[args.method]
    return TrainConfig(
        data=str(Path(args.data).resolve()),
        category=args.category,
        layout=args.layout,
        method=args.method,
        coarse=args.coarse if args.coarse in (None, SPLIT) else str(Path(args.coarse).resolve()),
        layers=args.layers,
        backbone=args.backbone,
        weights=args.weights,
        seed=args.seed,
        minutes=args.minutes,
        epochs=args.epochs,
        steps=args.steps,
        input=input_spec,
        canvas=canvas,
        batch=args.batch or usual.batch,
        prompts=args.prompts,
        learning_rate=args.learning_rate or usual.learning_rate,
        map=MapSpec(kind=args.map),
        prompt=args.prompt,
        correlation_weight=args.correlation_weight,
        frb=not args.no_frb,
        density_weight=args.density_weight,
        memory=args.memory,
        drawn=not args.no_drawn,
        expected=not args.no_expected,
        level=not args.no_level,
        evidence=not args.no_evidence,
        turned=args.turned,
        altered=args.altered,
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: a seed is not negative", "try 0")
    if args.batch is not None and args.batch < 2:
        raise UsageError(f"--batch {args.batch}: batch norms need at least 2 images", "try 8")
    if args.weights == "self" and args.backbone not in ("auto", "resnet18"):
        raise UsageError(
            f"--weights self --backbone {args.backbone}: what is learnt is a resnet18",
            "leave --backbone out, or give --weights auto or a file",
        )
    require_extra("train", *NEEDED)
    request = canvas_request(args.size, args.tiles, args.overlap, args.fit)

    import torch

    from train.agreement import SharedRunFolder, together
    from train.canvas import choose_canvas, image_sizes
    from train.datasets import open_dataset
    from train.distributed import leading, processes
    from train.pipeline import train

    if args.threads:
        torch.set_num_threads(args.threads)
    with processes(args.device):
        folder = SharedRunFolder(args.out)
        if args.restart:
            folder.discard()
        sizes: list[tuple[int, int]] = []
        if request.automatic:
            dataset = together(lambda: open_dataset(args.data, layout=args.layout, category=args.category))
            sizes = together(lambda: image_sizes(dataset.train))
        (height, width), canvas = choose_canvas(sizes, request)
        if request.automatic and leading():
            console.print(f"by the images: input {width}x{height}, {canvas.rows}x{canvas.columns} tiles, {canvas.fit}")
        train(folder, run_settings(args, InputSpec(height=height, width=width), canvas), args.device)
    return 0
