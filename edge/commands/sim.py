"""`edge-sim`: write a data set of simulated parts, to try training, calibration and evaluation without a camera."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from edge.cameras.sim import MAX_SIZE, MIN_SIZE, SimLine
from edge.cameras.sim_products import PRODUCTS
from edge.cli import CommandParser, command, console, progress
from edge.errors import DataError, UsageError
from edge.frames import U8

#: Where each set begins on the line.  `sim:` as a camera begins at 0; no two sets ever share a part.
TRAIN_START, TEST_START, GOOD_START = 10**9, 2 * 10**9, 3 * 10**9

_MAX_COUNT = 10**6
_FOLDERS = ("train", "test", "ground_truth", "good")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set; return the exit code."""
    args = _parse(argv)
    out: Path = args.out
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file", "name a folder")
    if not args.force and out.is_dir() and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty", f"name another folder, or replace {', '.join(_FOLDERS)} in it by --force"
        )
    line = SimLine(args.seed, args.width, args.height, product=args.product, rotation_deg=args.rotation)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Moved into place at the end: an interrupted run leaves nothing half-done.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as scratch:
            _write(line, args, Path(scratch))
            for name in _FOLDERS:
                shutil.rmtree(out / name, ignore_errors=True)
                if (Path(scratch) / name).exists():
                    (Path(scratch) / name).rename(out / name)
    except OSError as error:
        raise DataError(f"cannot write {error.filename or out}: {error.strerror or error}") from error
    console.print(
        f"{out}: {args.train} train, {args.test} test, {args.good} further good parts of product {args.product}"
    )
    return 0


def _write(line: SimLine, args: argparse.Namespace, root: Path) -> None:
    with progress() as bar:
        task = bar.add_task("parts", total=args.train + args.test + args.good, note="")
        for folder, index, kind, number in _plan(line, args):
            part = line.part(index, kind)
            _save(root / folder / f"{number:03d}.png", part.image)
            if kind != "good":
                mask = part.mask.astype(np.uint8) * np.uint8(255)
                _save(root / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
            bar.advance(task)


def _plan(line: SimLine, args: argparse.Namespace) -> Iterator[tuple[str, int, str, int]]:
    """Yield `(folder, index on the line, kind, number in the folder)`; the kinds of defect take turns."""
    for number in range(args.train):
        yield "train/good", TRAIN_START + number, "good", number
    defective = round(args.test * args.defects)
    for place in range(args.test):
        if place < defective:
            turn, which = divmod(place, len(line.kinds))
            yield f"test/{line.kinds[which]}", TEST_START + place, line.kinds[which], turn
        else:
            yield "test/good", TEST_START + place, "good", place - defective
    for number in range(args.good):
        yield "good", GOOD_START + number, "good", number


def _save(file: Path, image: U8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    file.write_bytes(encoded.tobytes())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="edge-sim",
        description="Write a data set of simulated parts in MVTec AD layout: train/good, test/good, test/<kind>, "
        "ground_truth/<kind>/NNN_mask.png, and good/ with further good parts for calibration. "
        "No part is in two of them, nor among those that the camera `sim:` shows.",
        epilog="example: edge-sim parts --train 100 --product tile.  exit codes: 0 written, 2 wrong arguments, "
        "7 the folder is not empty or cannot be written",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--train", type=int, default=60, metavar="N", help="good parts to train on (%(default)s)")
    parser.add_argument("--test", type=int, default=40, metavar="N", help="parts to test on (%(default)s)")
    parser.add_argument("--good", type=int, default=60, metavar="N", help="good parts to calibrate on (%(default)s)")
    parser.add_argument("--defects", type=float, default=0.5, metavar="SHARE", help="of the test parts (%(default)s)")
    parser.add_argument("--product", choices=sorted(PRODUCTS), default="disc", help="what is made (%(default)s)")
    parser.add_argument(
        "--rotation", type=float, metavar="DEG", help="parts lie turned by up to so many degrees (the product's own)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other parts (%(default)s)")
    parser.add_argument("--width", type=int, default=320, metavar="PX", help="frame width (%(default)s)")
    parser.add_argument("--height", type=int, default=320, metavar="PX", help="frame height (%(default)s)")
    parser.add_argument(
        "--force", action="store_true", help=f"replace {', '.join(_FOLDERS)} in a folder that is not empty"
    )
    args = parser.parse_args(argv)
    for name in ("train", "test", "good"):
        if not 0 <= getattr(args, name) <= _MAX_COUNT:
            raise UsageError(f"--{name} {getattr(args, name)}", f"0 to {_MAX_COUNT} parts")
    if args.train + args.test + args.good == 0:
        raise UsageError("nothing to write", "ask for some parts with --train, --test or --good")
    if not 0 <= args.defects <= 1:
        raise UsageError(f"--defects {args.defects}", "a share from 0 to 1")
    if args.rotation is not None and not 0 <= args.rotation <= 180:
        raise UsageError(f"--rotation {args.rotation}", "0 to 180 degrees")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}", "0 or more")
    if min(args.width, args.height) < MIN_SIZE or max(args.width, args.height) > MAX_SIZE:
        raise UsageError(
            f"--width {args.width} --height {args.height}", f"each side has {MIN_SIZE} to {MAX_SIZE} pixels"
        )
    return args


if __name__ == "__main__":
    raise SystemExit(main(None))
