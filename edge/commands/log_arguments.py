"""The arguments that say how a station logs."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager

from edge.log import BackgroundHandler, logging_to_stderr


def add_log_arguments(parser: argparse._ActionsContainer) -> None:
    """Add `--log-format` and `--log-level`."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="of log lines on stderr; json: one object per line, notes for people included (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least that is logged (default: %(default)s)",
    )


def start_logs(arguments: argparse.Namespace) -> AbstractContextManager[BackgroundHandler]:
    """Return a block in which the process logs as the arguments want it; enter it before all others."""
    return logging_to_stderr(arguments.log_format, arguments.log_level.upper())
