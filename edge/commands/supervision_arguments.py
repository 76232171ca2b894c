"""The arguments by which a station is supervised."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.supervision.health import HealthServer
    from edge.supervision.report import StationReport


def add_supervision_arguments(parser: argparse._ActionsContainer) -> None:
    """Add `--health`."""
    parser.add_argument(
        "--health",
        metavar="ADDRESS:PORT",
        help="answer HTTP at this address, such as 127.0.0.1:9560: /health, and /metrics for Prometheus",
    )


def open_health(arguments: argparse.Namespace, report: Callable[[], StationReport]) -> HealthServer | None:
    """Return the HTTP server as the arguments want it, None where they want none.  The caller closes it.

    Args:
        arguments: with `health`, and `insecure` of `add_server_arguments`.
        report: returns the station's report, at any time from now on, in the server's thread.

    Raises:
        PublishError: the address cannot be used.
    """
    if arguments.health is None:
        return None
    from edge.supervision.health import HealthServer

    return HealthServer(arguments.health, report, insecure=arguments.insecure)
