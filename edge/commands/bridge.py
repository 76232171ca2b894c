"""edge-bridge: hand a station's verdicts to PLCs, and their triggers to the station."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from edge.bridges.bridge import Bridge
from edge.bridges.settings import PlcEntry, read_settings
from edge.bridges.side import StationAddress
from edge.cli import CommandParser, command, console
from edge.commands.bridge_tags import add_tags_command
from edge.commands.bridge_test import add_test_command
from edge.commands.bridge_user import add_user_command
from edge.commands.key_arguments import add_client_arguments, client_keys
from edge.errors import UsageError
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.events.journal_files import journal_folder

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_EPILOG = """\
Start it before or after the station and the PLCs: it waits for them, and the PLCs see not ready until all is there.
docs/plc.md says how to wire a PLC, and has an example of bridge.toml.

exit codes:
  0  stopped by SIGINT (Ctrl-C) or SIGTERM: the PLCs were told that the bridge is not ready any more
  1  test: the PLC did not answer as it should
  2  wrong arguments, or a key of bridge.toml has a wrong value
  5  the endpoint is invalid
 11  keys that are missing, malformed or open to others
 12  a cursor's file cannot be used
 13  a PLC's side cannot be opened, such as an address at which we cannot listen
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run edge-bridge."""
    arguments = _parser().parse_args(argv)
    run: int = arguments.run(arguments)
    return run


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-bridge",
        description="Hand a station's verdicts to PLCs, and the PLCs' triggers to the station.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("--config", type=Path, metavar="FILE", help="which PLCs there are: bridge.toml")
    parser.add_argument(
        "--events",
        default=DEFAULT_ENDPOINT,
        metavar="ENDPOINT",
        help="where edge-run publishes: tcp://ADDRESS:PORT or ipc:///PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--control", metavar="ENDPOINT", help="where it answers requests (default: the next port, or PATH.control)"
    )
    parser.add_argument(
        "--cursors",
        type=Path,
        metavar="DIR",
        help="keeps how far PLCs that are told every event have been told (default: $XDG_STATE_HOME/redi-edge/bridge)",
    )
    add_client_arguments(parser)
    commands = parser.add_subparsers(title="instead of running", metavar="COMMAND")
    add_tags_command(commands)
    add_user_command(commands)
    add_test_command(commands)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        raise UsageError("which PLCs there are is not known", "add --config bridge.toml, see docs/plc.md")
    # Loaded here, so that --help does not wait for it.
    from edge.station import SWITCH_INTERVAL_S

    # A PLC's side and its protocol's own thread hand over to each other with every signal.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    station = StationAddress(arguments.events, arguments.control, client_keys(arguments))
    entries = read_settings(arguments.config)
    cursors = arguments.cursors or journal_folder("bridge")
    bridge = Bridge(entries, station, cursors=cursors, report=_say)
    _say(f"station at {arguments.events}; {', '.join(map(_describe, entries))}")
    with _ended_by_signals(bridge):
        bridge.run()
    _say("stopped: the PLCs see not ready")
    return 0


def _describe(entry: PlcEntry) -> str:
    return f"{entry.settings.name} over {entry.settings.protocol}"


def _say(text: str) -> None:
    console.print(escape("".join(character if character.isprintable() else "?" for character in text)))


@contextmanager
def _ended_by_signals(bridge: Bridge) -> Iterator[None]:
    before = {each: signal.signal(each, lambda *_: bridge.stop()) for each in _END_SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    raise SystemExit(main(None))
