"""The arguments by which commands are given keys, the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge.keys import KeyFolder, Kind, public_key

if TYPE_CHECKING:
    from edge.events.security import ClientKeys, ServerKeys


def add_folder_argument(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add `--keys DIR`."""
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help=f"folder of keys, see edge-keys (default: the user's): {purpose}"
    )


def add_server_arguments(parser: argparse._ActionsContainer) -> None:
    """Add what makes a station's TCP sockets admit only clients with keys."""
    add_folder_argument(parser, "encrypt what goes over TCP, and admit only the clients that it allows")
    parser.add_argument(
        "--server-key", metavar="NAME", help="the station's own key pair in that folder (default: its only one)"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="without keys, let anybody listen who can reach a TCP endpoint"
    )


def server_keys(arguments: argparse.Namespace) -> ServerKeys | None:
    """Return the station's keys, None where it was given none.

    Raises:
        KeysError: they cannot be used.
        UsageError: the arguments contradict each other.
    """
    if arguments.keys is None and arguments.server_key is None:
        return None
    if arguments.insecure:
        raise UsageError("--insecure is for a station without keys", "leave it out, or --keys and --server-key")
    from edge.events.security import ServerKeys

    folder = KeyFolder(arguments.keys)
    return ServerKeys(folder.pair(Kind.CONNECT, arguments.server_key), folder)


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a client of a station with keys needs."""
    parser.add_argument(
        "--server-key",
        metavar="FILE",
        help="the station's public key: its .public file, or as edge-keys show prints it",
    )
    add_folder_argument(parser, "holds this client's own key pair")
    parser.add_argument("--key", metavar="NAME", help="the client's own key pair (default: the folder's only one)")


def client_keys(arguments: argparse.Namespace) -> ClientKeys | None:
    """Return the client's keys, None where it was given none.

    Raises:
        KeysError: they cannot be used.
        UsageError: the station's key is missing.
    """
    if arguments.server_key is None:
        if arguments.keys is not None or arguments.key is not None:
            raise UsageError(
                "--keys and --key are for a station with keys, and its public key is missing",
                "copy the station's .public file here and give it as --server-key",
            )
        return None
    from edge.events.security import ClientKeys

    return ClientKeys(KeyFolder(arguments.keys).pair(Kind.CONNECT, arguments.key), public_key(arguments.server_key))
