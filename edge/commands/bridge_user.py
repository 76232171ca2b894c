"""edge-bridge user: who may log in to a server of the bridge."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bridges.passwords import Users, read_users

if TYPE_CHECKING:
    from edge.cli import CommandParser

    _Commands = argparse._SubParsersAction[CommandParser]

_EPILOG = """\
The password is asked for, or read from a pipe; the file keeps a salted hash.

example: edge-bridge user line1-plc --file users.txt
"""


def add_user_command(commands: _Commands) -> None:
    """Add `user`."""
    parser = commands.add_parser(
        "user",
        help="add a user to a users_file, or change the password",
        description="Add a user to a users_file, or change the password.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("name", metavar="NAME", help="the user")
    parser.add_argument("--file", type=Path, required=True, metavar="FILE", help="the users_file; made if missing")


def _run(arguments: argparse.Namespace) -> int:
    users = read_users(arguments.file) if arguments.file.exists() else Users({})
    if sys.stdin.isatty():
        password = getpass.getpass(f"password of {arguments.name}: ")
    else:
        password = sys.stdin.readline().rstrip("\n")
    users.put(arguments.name, password)
    users.save(arguments.file)
    return 0
