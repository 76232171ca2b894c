"""DeepPCB as a data set of MVTec AD's layout: circuit boards, each photographed with defects and drawn without.

    python tests/benchmarks/accuracy/pairs.py DEEPPCB --out DIR

`template/ID.jpg` is free of defects, `test/ID.jpg` is the same piece of board, `boxes/ID.txt` has lines
`x1 y1 x2 y2 type`.  Every fourth pair is tested; the other templates are the good training images, so that no
tested piece of board was trained on.  Masks are filled boxes, larger than the defects; pixel figures are those of
boxes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from edge.cli import command
from edge.errors import DataError
from edge.images import read_image, write_png
from tests.benchmarks.accuracy.splits import link

#: Of this many pairs in a row, the last is tested.
TESTED = 4


def convert(root: Path, folder: Path) -> Path:
    """Write the data set `folder/deeppcb`, made anew, of links and masks.

    Raises:
        DataError: a test image or the boxes of a template are missing, or boxes cannot be read.
        FrameError: a test image cannot be read.
        OSError: a mask cannot be written.
    """
    templates = sorted((root / "template").glob("*.jpg"))
    if len(templates) < TESTED:
        raise DataError(f"{root}: {len(templates)} templates", "give the folder that has template, test and boxes")
    data = folder / "deeppcb"
    shutil.rmtree(data, ignore_errors=True)
    for number, template in enumerate(templates):
        if number % TESTED < TESTED - 1:
            link(template, data / "train" / "good")
            continue
        link(template, data / "test" / "good")
        image = root / "test" / template.name
        boxes = root / "boxes" / f"{template.stem}.txt"
        if not image.is_file() or not boxes.is_file():
            raise DataError(f"{image}: it or {boxes} is missing", "every template needs both")
        link(image, data / "test" / "defect")
        _write_mask(image, boxes, data / "ground_truth" / "defect" / f"{template.stem}_mask.png")
    return data


def _write_mask(image: Path, boxes: Path, path: Path) -> None:
    try:
        corners = np.loadtxt(boxes, int, usecols=(0, 1, 2, 3), ndmin=2)
    except ValueError as error:
        raise DataError(f"{boxes}: {error}", "lines are x1 y1 x2 y2 type") from error
    mask = np.zeros(read_image(image).shape[:2], np.uint8)
    for left, top, right, bottom in corners:
        mask[top : bottom + 1, left : right + 1] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, mask)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and say where to."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, metavar="DEEPPCB", help="with template, test and boxes")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="for DIR/deeppcb, made anew")
    args = p.parse_args(argv)
    print(convert(args.data, args.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
