"""`calib-threshold`: set a bundle's threshold from good images alone."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from calib.calibrate import Request, calibrate, warnings_for
from calib.flatfield import flat_field
from calib.scoring import GoodScores, good_images, score_images
from calib.threshold import MAX_PIXEL_RATE, METHODS, Decision
from edge.bundle import Bundle, set_calibration
from edge.cli import CommandParser, command, console, output_console, positive_number, progress, require_extra
from edge.errors import EdgeError, UsageError
from edge.files import atomic_write
from edge.frames import Roi
from edge.inspection.corrections import Corrections
from edge.manifest import Calibration, Lens

_DESCRIPTION = """\
Score photographs of good parts with the bundle's own model, choose the image-score threshold that keeps the
wanted false-reject rate, choose the pixel threshold for the mask, and store both in the bundle. The model in the
bundle is not touched: calibrate as often as you like."""

_NONE = "none"

_EPILOG = """\
example: calib-threshold redi.plan --good photos/calibration --false-reject 0.01

methods:
  order      no assumption about the scores; needs many images (2995 for 0.001 at 0.95 confidence)
  tolerance  assumes that ln(score) is normal and tests it; needs 1 / (20 rate) images (50 for 0.001)
  auto       order where there are images enough, tolerance otherwise
Use good images that the model was NOT trained on; those it was trained on score too low.

exit codes: 0 calibrated, 1 calibrated but the picture cannot be written, 2 bad arguments, 3 unusable bundle,
            7 unusable image folder, 8 the images cannot support the request (says how many are needed),
            130 interrupted
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `calib-threshold`."""
    arguments = _parser().parse_args(argv)
    require_extra("calib", "scipy", "matplotlib")
    path: Path = arguments.bundle
    plot: Path = arguments.plot or path.with_name(path.name + ".calibration.png")
    _check_places(path, plot)
    paths = good_images(arguments.good)
    with Bundle.open(path) as bundle:
        request = _request(arguments, bundle.calibration)
        corrections = _corrections(arguments, bundle)
        good = _score(bundle, paths, request.pixel_rate, corrections)
        calibration, decision = calibrate(good, request, bundle.manifest.model.compare)
        model, bundle_id = bundle.manifest.model, bundle.bundle_id
        signed = bundle.signature is not None
    from calib.plot import draw, statement

    title = f"{path.name}: {model.method} {model.backbone}, {arguments.good}"
    picture = draw(good.scores, [p.name for p in good.paths], calibration, decision, title)
    set_calibration(path, calibration, bundle_id=bundle_id, flat_field=corrections.flat_field)
    try:
        with atomic_write(plot) as file:
            file.write(picture)
    except OSError as error:
        raise EdgeError(f"{path} is calibrated, but {plot} cannot be written: {error.strerror or error}") from error

    notes = warnings_for(good, decision)
    if signed:
        notes.append(f"the signature was of the calibration before and is gone: edge-bundle sign {path}")
    if arguments.json:
        print(_json(calibration, decision, good, notes, plot))
    else:
        flat = corrections.flat_field is not None
        _show(path, calibration, decision, notes, plot, statement(calibration, decision), flat)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="calib-threshold",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="redi.plan", help="the bundle to calibrate")
    parser.add_argument("--good", type=Path, required=True, metavar="DIR", help="folder of images of good parts")
    parser.add_argument(
        "--false-reject",
        type=_rate,
        default=0.001,
        metavar="R",
        help="share of good parts that may be rejected (0.001)",
    )
    parser.add_argument(
        "--confidence", type=_rate, default=0.95, metavar="C", help="confidence that the rate is kept (0.95)"
    )
    parser.add_argument("--method", choices=METHODS, default="auto", help="see below (auto)")
    parser.add_argument(
        "--pixel-rate",
        type=_pixel_rate,
        default=1e-4,
        metavar="R",
        help="share of good pixels that may be marked (0.0001)",
    )
    kept = "default: as calibrated before, else"
    parser.add_argument(
        "--min-region-px", type=_count, metavar="N", help=f"regions of fewer frame pixels are not reported ({kept} 0)"
    )
    parser.add_argument(
        "--pixel-size-mm",
        type=positive_number,
        metavar="MM",
        help=f"size of a frame pixel on the part ({kept} unknown)",
    )
    parser.add_argument(
        "--roi",
        type=_roi,
        metavar="X,Y,WIDTH,HEIGHT",
        help=f"inspect this part of the frame alone, in its pixels; none: all of it ({kept} all)",
    )
    parser.add_argument(
        "--lens",
        type=_lens,
        metavar="FX,FY,CX,CY[,K1,K2,P1,P2,K3]",
        help=f"take out this lens's distortion, as OpenCV calibrates it; none: do not ({kept} do not)",
    )
    parser.add_argument(
        "--flat-field",
        type=_flat_field,
        metavar="DIR",
        help=f"photographs of a plain grey surface: even the light by their mean; none: do not ({kept} do not)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="the picture (redi.plan.calibration.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of the summary")
    return parser


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1, such as 0.01 for 1 %")
    return value


def _pixel_rate(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MAX_PIXEL_RATE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {MAX_PIXEL_RATE:g}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _roi(text: str) -> Roi | str:
    found = re.fullmatch(r"([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5})", text)
    if text == _NONE:
        return text
    if found is None or int(found[3]) == 0 or int(found[4]) == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not X,Y,WIDTH,HEIGHT in pixels, such as 320,0,1080,1080, or none"
        )
    return Roi(*map(int, found.groups()))


def _lens(text: str) -> Lens | str:
    if text == _NONE:
        return text
    terms = [_number(word) for word in text.split(",")]
    if not 4 <= len(terms) <= 9 or not all(map(math.isfinite, terms)) or min(terms[:2]) <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FX,FY,CX,CY[,K1,K2,P1,P2,K3] with FX and FY above 0, or none"
        )
    return Lens(*terms)


def _flat_field(text: str) -> Path | str:
    return text if text == _NONE else Path(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _check_places(bundle: Path, plot: Path) -> None:
    """Refuse, before minutes of scoring, what could not be written afterwards."""
    if plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: the picture is a PNG", "name a file that ends in .png")
    for path in (bundle, plot):
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"{path}: the folder {folder} is not there or not writable")


def _request(arguments: argparse.Namespace, before: Calibration | None) -> Request:
    region, size = arguments.min_region_px, arguments.pixel_size_mm
    return Request(
        false_reject=arguments.false_reject,
        confidence=arguments.confidence,
        method=arguments.method,
        pixel_rate=arguments.pixel_rate,
        min_region_px=region if region is not None else before.min_region_px if before else 0,
        pixel_size_mm=size if size is not None else before.pixel_size_mm if before else None,
        roi=_choice(arguments.roi, before.roi if before else None),
        lens=_choice(arguments.lens, before.lens if before else None),
    )


def _choice(given: Any, before: Any) -> Any:
    """Return what was given, nothing where that is `none`; what there was before where nothing was given."""
    return before if given is None else None if given == _NONE else given


def _corrections(arguments: argparse.Namespace, bundle: Bundle) -> Corrections:
    before = Corrections.of(bundle, bundle.calibration)
    roi, lens = _choice(arguments.roi, before.roi), _choice(arguments.lens, before.lens)
    if isinstance(arguments.flat_field, Path):
        return Corrections(roi, flat_field(good_images(arguments.flat_field)), lens)
    return Corrections(roi, _choice(arguments.flat_field, before.flat_field), lens)


def _score(bundle: Bundle, paths: Sequence[Path], pixel_rate: float, corrections: Corrections) -> GoodScores:
    with progress(transient=True) as bar:
        task = bar.add_task("scoring good images", total=len(paths), note="")

        def counted() -> Iterator[Path]:
            for path in paths:
                yield path
                bar.advance(task)

        return score_images(bundle, counted(), pixel_rate, corrections)


def _show(
    path: Path, calibration: Calibration, decision: Decision, notes: list[str], plot: Path, words: str, flat: bool
) -> None:
    c = calibration
    table = Table(title=f"calibration of {path}", show_header=False)
    rows = {
        "threshold": f"{c.threshold:.6g}  (a part is NG above it)",
        "pixel threshold": f"{c.pixel_threshold:.6g}  (the mask is where the map is above it)",
        "good images": f"{c.images}",
        "good scores": f"mean {c.good_mean:.4g}, std {c.good_std:.4g}, max {c.good_max:.4g}",
        "method": c.method,
        "stated false-reject rate": f"{c.false_reject:.4g}",
        "distribution-free bound": f"{c.false_reject_bound:.4g}  ({decision.exceeded} above the threshold)",
        "confidence": f"{c.confidence:.4g}",
        "smallest region": f"{c.min_region_px} px",
        "region of interest": "all of the frame" if c.roi is None else "{2} x {3} at {0}, {1}".format(*c.roi),
        "flat field": "yes" if flat else "none",
        "lens": "straightened" if c.lens else "as it is",
        "pixel size": "unknown" if c.pixel_size_mm is None else f"{c.pixel_size_mm:g} mm",
        "picture": str(plot),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    out = output_console(markup=False)
    out.print(table)
    out.print(words)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def _json(calibration: Calibration, decision: Decision, good: GoodScores, notes: list[str], plot: Path) -> str:
    record = {
        **msgspec.to_builtins(calibration),
        "exceeded": decision.exceeded,
        "normality_p": decision.normality,
        "outliers": [str(good.paths[index]) for index in decision.outliers],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in good.skipped],
        "trained": [str(path) for path in good.trained],
        "duplicates": [{"path": str(path), "same_as": str(first)} for path, first in good.duplicates],
        "notes": notes,
        "plot": str(plot),
    }
    return json.dumps(record)


if __name__ == "__main__":
    raise SystemExit(main(None))
