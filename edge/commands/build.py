"""`edge-build`: the bundle's network, compiled for this machine's GPU."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from edge.cli import CommandParser, command, console, whole_number

_LEVELS = range(6)
_MAX_DLA = 9

_EPILOG = """\
An engine is good for one GPU and one version of TensorRT.  It is stored in the bundle, beside those of other machines,
once the golden frames score with it as recorded; where the bundle is signed or cannot be written, in this user's cache.
One that fits is built again only with --rebuild.  Its precision is the bundle's: train-export --fp16 makes bundles for
GPUs.  What is learnt about the speed of layers is kept in the cache, so that the next build is faster.

exit codes:
   0  the engine is there
   1  it can be kept nowhere
   2  arguments that make no sense
   3  the bundle cannot be used, or TensorRT cannot read its network
   6  no GPU, driver, TensorRT or PyCUDA, or they fail
   9  the golden frames score differently with the engine: it is not kept
  70  internal error
 130  interrupted by Ctrl-C: nothing is kept

example: edge-build redi.plan
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Build, check and store an engine."""
    args = _parser().parse_args(argv)
    # Loaded once the arguments are known to be good, so that --help does not wait for them.
    from edge.inspection.cuda.available import require_cuda
    from edge.inspection.cuda.tensorrt_engine import BuildOptions

    require_cuda()
    from edge.inspection.cuda.provide import provide_engine
    from edge.inspection.cuda.pycuda_device import own_gpu

    options = BuildOptions(dla=args.dla, workspace_mib=args.workspace, level=args.level)
    done = provide_engine(
        args.bundle, own_gpu(), options, out=args.out, rebuild=args.rebuild, into_cache=args.into_cache
    )
    if math.isnan(done.worst):
        console.print("[yellow]note[/]: the bundle has no golden frames to check the engine by")
    else:
        console.print(f"golden frames score as recorded with it, largest difference {done.worst:.3%}")
    key = done.key
    built = "built" if done.new else "was there already"
    print(
        f"{done.path}: engine {built}: {key.runtime} {key.version}, {key.precision}, {key.device}, "
        f"{done.size / 1e6:.1f} MB"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-build",
        description="Compile a bundle's network for this machine's GPU with TensorRT, and store it in the bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="redi.plan", help="the bundle, calibrated or not")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="write a new bundle and leave the one given as it is")
    where.add_argument("--into-cache", action="store_true", help="keep the engine in this user's cache instead")
    parser.add_argument("--rebuild", action="store_true", help="build it also where one that fits is there")
    parser.add_argument(
        "--dla", type=_dla, metavar="N", help="let deep-learning accelerator N run what it can, the GPU the rest"
    )
    parser.add_argument(
        "--workspace", type=whole_number, metavar="MIB", help="scratch memory a layer may use (default: TensorRT's)"
    )
    parser.add_argument(
        "--level",
        type=int,
        choices=_LEVELS,
        help="optimisation level: 0 builds fast, 5 may run faster (default: TensorRT's)",
    )
    return parser


def _dla(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_DLA:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MAX_DLA}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main(None))
