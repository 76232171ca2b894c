"""What a few marked defect images are worth: a data set without them, folders of 5, 10, 20 of them, and the grid.

    python tests/benchmarks/accuracy/marks.py DATA KIND[,KIND…] [--counts 5,10,20] --out DIR
    train-ablate DIR/DATA --grid DIR/grid.json --out ablation --weights FILE …

The most that are marked leave the test set for every variant, so that all are tested on the same images; fewer marks
are some of more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import msgspec

from edge.cli import command
from edge.errors import UsageError
from tests.benchmarks.accuracy.splits import Split, link, marked, spread


def write_grid(root: Path, kind: str, counts: Sequence[int], folder: Path) -> Split:
    """Make the data set, the folders of marked images and `grid.json` for `train-ablate`, all under `folder`.

    Raises:
        UsageError: as `marked` does, or a count is below 1.
    """
    if min(counts) < 1:
        raise UsageError(f"--counts {','.join(map(str, counts))}: not all are at least 1", "5,10,20 is usual")
    split = marked(root, kind, max(counts), folder)
    assert split.coarse is not None
    images = sorted(split.coarse.glob("*/*"))
    grid: dict[str, list[str]] = {"no marks": []}
    for count in sorted(set(counts)):
        part = folder / f"marked-{count}"
        for image in spread(images, count):
            link(image, part / image.parent.name)
        grid[f"{count} marked"] = ["--coarse", str(part.absolute())]
    (folder / "grid.json").write_bytes(msgspec.json.encode(grid))
    return split


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Make the split, and print the next command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, metavar="DATA", help="a data set in MVTec AD's layout")
    p.add_argument("kind", metavar="KIND[,KIND…]", help="the defect kinds to mark images of, about equally many each")
    p.add_argument("--counts", default="5,10,20", metavar="N,N…", help="how many (5,10,20)")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="made anew")
    args = p.parse_args(argv)
    try:
        counts = [int(count) for count in args.counts.split(",")]
    except ValueError:
        raise UsageError(f"--counts {args.counts}: not numbers with commas between", "5,10,20 is usual") from None
    split = write_grid(args.data, args.kind, counts, args.out)
    print(f"{split.label}\ntrain-ablate {split.root} --grid {args.out / 'grid.json'} --out ablation --weights FILE")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
