"""`edge-keys`: make keys, and say which of others' are allowed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from edge.cli import CommandParser, command, console, output_console
from edge.errors import KeysError
from edge.keys import KeyFolder, Kind, PublicKey, default_folder, public_key

_EPILOG = """\
A station and two clients, each command on the machine before the colon:
  station:  edge-keys make station              and copy station.public to the clients
  hmi:      edge-keys make hmi                  and copy hmi.public to the station
  bridge:   edge-keys make bridge               likewise
  station:  edge-keys allow hmi.public
  station:  edge-keys allow bridge.public
  station:  edge-run … --publish tcp://0.0.0.0:5560 --server-key station
  hmi:      edge-watch tcp://STATION:5560 --server-key station.public

Secret keys are never printed and never leave their file (NAME.secret, mode 0600).

exit codes: 0 done, 2 bad arguments, 11 keys that are missing, malformed, or open to others
"""

_PURPOSES = {Kind.CONNECT: "connects", Kind.SIGN: "signs bundles"}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `edge-keys`."""
    arguments = _parser().parse_args(argv)
    folder = KeyFolder(arguments.keys)
    if arguments.action == "make":
        _make(folder, arguments.name, Kind.SIGN if arguments.sign else Kind.CONNECT)
    elif arguments.action == "list":
        _list(folder)
    elif arguments.action == "show":
        print(_find(folder, arguments.name).text)
    elif arguments.action == "allow":
        _allow(folder, arguments.key, arguments.name)
    else:
        _revoke(folder, arguments.key)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-keys",
        description="Make the keys of a station, of its clients, and of those who sign bundles; say whose are allowed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|list|show|allow|revoke")
    texts = {
        "make": "make a key pair: NAME.secret, which stays here, and NAME.public, for the other side",
        "list": "list our own key pairs and the keys that are allowed",
        "show": "print a public key, ours or an allowed one, as one word",
        "allow": "let the owner of a public key connect here, or accept the bundles that it signs",
        "revoke": "allow a key no more: from the next connection or bundle on",
    }
    made = {name: actions.add_parser(name, help=text, description=f"{text}.") for name, text in texts.items()}
    for each in made.values():
        each.add_argument("--keys", type=Path, metavar="DIR", help=f"folder of keys (default: {default_folder()})")
    made["make"].add_argument("name", metavar="NAME")
    made["make"].add_argument("--sign", action="store_true", help="for signing bundles, not for connecting")
    made["show"].add_argument("name", metavar="NAME")
    made["allow"].add_argument("key", metavar="FILE|KEY", help="a .public file, or a key as `show` prints it")
    made["allow"].add_argument("--name", help="what to call it here (default: as its file says)")
    made["revoke"].add_argument("key", metavar="NAME|KEY")
    return parser


def _make(folder: KeyFolder, name: str, kind: Kind) -> None:
    key = folder.make(name, kind)
    use = "edge-bundle sign" if kind is Kind.SIGN else "edge-run or edge-watch"
    path = escape(str(folder.path / name))
    console.print(f"made {path}.secret, which stays here, for {use}")
    console.print(f"     {path}.public, for the other side: copy it there, and edge-keys allow it")
    print(key.text)


def _list(folder: KeyFolder) -> None:
    table = Table("name", "", "what it does", Column("public key", overflow="fold"), title=escape(str(folder.path)))
    for pair in folder.pairs():
        table.add_row(pair.public.name, "ours", _PURPOSES[pair.public.kind], pair.public.text)
    keys, problems = folder.scan_allowed()
    for key in keys:
        table.add_row(key.name, "allowed", _PURPOSES[key.kind], key.text)
    output_console().print(table)
    if problems:
        raise problems[0]


def _find(folder: KeyFolder, name: str) -> PublicKey:
    keys = [pair.public for pair in folder.pairs()] + folder.allowed()
    found = [key for key in keys if key.name == name]
    if not found:
        raise KeysError(f"{folder.path}: no key {name!r}", "edge-keys list shows those that are there")
    return found[0]


def _allow(folder: KeyFolder, text: str, name: str | None) -> None:
    key = public_key(text)
    wanted = PublicKey(key.kind, key.raw, name or key.name)
    known = folder.allow(wanted)
    what = "connect here" if key.kind is Kind.CONNECT else "sign bundles for this machine"
    before = "" if known is wanted else f", as before under the name {known.name}"
    print(f"{wanted.name if known is wanted else known.name} may {what}: {known.text}{before}")


def _revoke(folder: KeyFolder, text: str) -> None:
    name = text
    if ":" in text:
        key = public_key(text)
        names = [each.name for each in folder.allowed() if each == key]
        if not names:
            raise KeysError(f"{folder.path}: this key is not allowed", "edge-keys list shows those that are")
        name = names[0]
    gone = folder.revoke(name)
    print(f"{gone.name} is no longer allowed: {gone.text}")
    if gone.kind is Kind.CONNECT:
        console.print(
            "who is connected under this key now stays connected until the station starts again", style="yellow"
        )


if __name__ == "__main__":
    raise SystemExit(main(None))
