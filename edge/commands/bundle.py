"""`edge-bundle`: look inside a bundle, check it, sign it, take it apart."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.bundle import Bundle
from edge.cli import CommandParser, command, output_console
from edge.commands.key_arguments import add_folder_argument
from edge.container import MANIFEST
from edge.errors import EdgeError, UsageError
from edge.files import atomic_write
from edge.inspection.canvas import Canvas
from edge.keys import KeyFolder, Kind
from edge.manifest import Calibration, ModelSpec

_EPILOG = """\
exit codes: 0 whole, 1 cannot write, 2 bad arguments, 3 missing, damaged, foreign, from a newer release or, where that
is required, not signed by a key that is allowed here, 11 keys missing, malformed or open to others
A bundle is a plain ZIP without compression: `unzip -l redi.plan` and file managers open it too."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `edge-bundle`."""
    arguments = _parser().parse_args(argv)
    if arguments.action == "sign":
        _sign(arguments)
        return 0
    with Bundle.open(arguments.bundle) as bundle:
        if arguments.action == "unpack":
            _unpack(bundle, arguments.folder, arguments.force)
        elif arguments.action == "verify":
            members = len(bundle.members) + 1
            seal = _seal(bundle, KeyFolder(arguments.keys), arguments.require_signed)
            print(f"{bundle.path}: whole ({members} members, bundle id {bundle.bundle_id}), {seal}")
        elif arguments.json:
            print(json.dumps(describe(bundle)))
        else:
            _show(bundle)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-bundle",
        description="Look inside a bundle (redi.plan), or sign it. Whatever is asked, every digest is checked first.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|verify|sign|unpack")
    texts = {
        "show": "model, prompts, calibration, golden frames, engines, provenance and members",
        "verify": "check layout, digests, types, values, shapes and signature; prints one line",
        "sign": "vouch for the model, its calibration and all else by which it decides",
        "unpack": "write every member into a folder",
    }
    made = {}
    for name, text in texts.items():
        made[name] = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made[name].add_argument("bundle", type=Path, metavar="redi.plan", help="the bundle")
    made["show"].add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    made["verify"].add_argument(
        "--require-signed", action="store_true", help="refuse it unless a key that is allowed here has signed it"
    )
    add_folder_argument(made["verify"], "says whose signatures are accepted")
    made["sign"].add_argument(
        "--key", metavar="NAME", help="the key pair to sign with (default: the folder's only one)"
    )
    add_folder_argument(made["sign"], "holds the key pair")
    made["unpack"].add_argument("folder", type=Path, metavar="DIR", help="made where it is missing")
    made["unpack"].add_argument(
        "--force", action="store_true", help="write into a folder that is not empty, over files of the same names"
    )
    return parser


def _sign(arguments: argparse.Namespace) -> None:
    from edge.signing import sign_bundle

    pair = KeyFolder(arguments.keys).pair(Kind.SIGN, arguments.key)
    bundle_id = sign_bundle(arguments.bundle, pair)
    print(f"{arguments.bundle}: signed by {pair.public.name}, {pair.public.text} (bundle id {bundle_id})")


def _seal(bundle: Bundle, folder: KeyFolder, required: bool) -> str:
    """Return what the signature says.  A wrong one is an error even where none is required."""
    if bundle.signature is None and not required:
        return "not signed"
    from edge.signing import check_signature, require_signature

    if required:
        signer = require_signature(bundle, folder)
        return f"signed by {signer.name}, {signer.text}"
    signer = check_signature(bundle)
    name = next((key.name for key in folder.allowed(Kind.SIGN) if key == signer), "a key that is not allowed here")
    return f"signed by {name}, {signer.text}"


def describe(bundle: Bundle) -> dict[str, object]:
    """Return all that the bundle says of itself, ready for JSON."""
    return {
        "path": str(bundle.path),
        "bytes": bundle.path.stat().st_size,
        "bundle_id": bundle.bundle_id,
        "calibration_id": bundle.calibration_id,
        "signed_by": None if bundle.signature is None else f"{bundle.signature.algorithm}:{bundle.signature.key}",
        "manifest": msgspec.to_builtins(bundle.manifest),
        "calibration": msgspec.to_builtins(bundle.calibration),
        "golden": msgspec.to_builtins(bundle.golden),
        "prompts": list(bundle.prompt_names),
    }


def _show(bundle: Bundle) -> None:
    out = output_console(soft_wrap=not os.isatty(1))
    manifest = bundle.manifest
    _print_pairs(
        out,
        str(bundle.path),
        {
            "bundle id": bundle.bundle_id,
            "size": _bytes(bundle.path.stat().st_size),
            "schema": str(manifest.schema),
            "created": manifest.created,
            "prompts": _prompts(bundle),
            # What it says; `verify` checks it.
            "signed by": "nobody"
            if bundle.signature is None
            else f"{bundle.signature.algorithm}:{bundle.signature.key}",
        },
    )
    _print_pairs(out, "model", _model_rows(bundle))
    _print_pairs(out, "calibration", _calibration_rows(bundle))
    if manifest.provenance:
        _print_pairs(out, "provenance", dict(sorted(manifest.provenance.items())))

    golden = Table("frame", "score", "peak", title=f"golden frames (tolerance {bundle.golden.tolerance:.2%})")
    for frame in bundle.golden.frames:
        golden.add_row(escape(frame.name), f"{frame.score:.6g}", f"{frame.peak:.6g}")
    out.print(golden)
    if manifest.engines:
        engines = Table("engine", "runtime", "device", "version", "precision", title="engines")
        for name, key in sorted(manifest.engines.items()):
            engines.add_row(*map(escape, (name, key.runtime, key.device, key.version, key.precision)))
        out.print(engines)
    members = Table("member", "size", "SHA-256, first 16 digits", title="members")
    members.columns[1].justify = "right"
    for name, member in bundle.members.items():
        members.add_row(escape(name), _bytes(member.size), member.sha256[:16])
    out.print(members)


def _model_rows(bundle: Bundle) -> dict[str, str]:
    model = bundle.manifest.model
    features = ", ".join(f"{name} {_shape(shape)}" for name, shape in model.core.prompt_features.items())
    return {
        "method": f"{model.method}, {model.backbone}",
        "input": f"{model.input.width} x {model.input.height} px, {model.input.order}",
        "canvas": _canvas(model),
        "normalisation": f"scale {model.input.scale:.6g}, mean {model.input.mean}, std {model.input.std}",
        "map": f"{model.map.kind}, {model.map.orientations} orientations, cells of {model.map.cell} px, "
        f"epsilon {model.map.epsilon:g}, clip {model.map.clip:g}, descriptor pool {model.map.descriptor_pool}",
        "compare": f"levels {', '.join(map(_shape, model.compare.scales))}; "
        f"sigma {model.compare.sigma:g}, score = mean of the top {model.compare.top_k}",
        "core": f"{model.core.precision}, prompt features {features or 'none'}"
        + (f", prompts chosen: {model.core.prompt_choice}" if model.core.uses_prompt else ""),
    }


def _canvas(model: ModelSpec) -> str:
    canvas = Canvas(model.input, model.canvas)
    size = f"{canvas.width} x {canvas.height} px, " + ("padded" if model.canvas.fit == "pad" else "stretched")
    if model.canvas.tiles == 1:
        return f"{size}, one tile"
    return f"{size}, {model.canvas.rows} x {model.canvas.columns} tiles, {model.canvas.overlap} px overlap"


def _calibration_rows(bundle: Bundle) -> dict[str, str]:
    c: Calibration | None = bundle.calibration
    if c is None:
        return {"state": f"not calibrated; next: calib-threshold {bundle.path} --good DIR"}
    return {
        "calibration id": bundle.calibration_id,
        "threshold": f"{c.threshold:.6g}",
        "pixel threshold": f"{c.pixel_threshold:.6g}",
        "false-reject rate": f"{c.false_reject:.4g} stated ({c.method}), at most {c.false_reject_bound:.4g} "
        f"without assumptions, confidence {c.confidence:.4g}",
        "good images": f"{c.images}: mean {c.good_mean:.4g}, std {c.good_std:.4g}, max {c.good_max:.4g}",
        "smallest region": f"{c.min_region_px} px",
        "pixel size": "unknown" if c.pixel_size_mm is None else f"{c.pixel_size_mm:g} mm",
        "created": c.created,
    }


def _prompts(bundle: Bundle) -> str:
    names = bundle.prompt_names
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)}: {', '.join(names[:4])}{more}" if names else "none"


def _print_pairs(out: Console, title: str, rows: dict[str, str]) -> None:
    table = Table(title=escape(title), show_header=False)
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    out.print(table)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _unpack(bundle: Bundle, folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: exists and is not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder}: the folder is not empty", "name another, or add --force")
    names = [MANIFEST, *bundle.members]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside = os.path.realpath(folder)
        for name in names:
            target = folder / name
            # A link that was already there could lead the write out of the folder.
            if not Path(os.path.realpath(target)).is_relative_to(inside):
                raise UsageError(f"{target}: a link leads out of the folder", "remove it, or name another folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                file.write(bundle.read(name))
    except OSError as error:
        raise EdgeError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error
    print(f"{folder}: {len(names)} members of {bundle.path}")


if __name__ == "__main__":
    raise SystemExit(main(None))
