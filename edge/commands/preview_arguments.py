"""The arguments that let people watch previews."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.cli import positive_number

if TYPE_CHECKING:
    import zmq

    from edge.events.preview_outlet import PreviewOutlet
    from edge.events.security import ServerKeys
    from edge.supervision.pulse import Pulse

_NEXT = "next"


def add_preview_arguments(parser: argparse._ActionsContainer) -> None:
    """Add `--preview` and how often."""
    parser.add_argument(
        "--preview",
        nargs="?",
        const=_NEXT,
        default="none",
        metavar="ENDPOINT",
        help="send small pictures to who subscribes, at this endpoint; without one, two ports after --publish or at "
        "PATH.preview (default: %(default)s)",
    )
    parser.add_argument(
        "--preview-rate",
        type=positive_number,
        default=5.0,
        metavar="N",
        help="at most so many per second and camera (default: %(default)g)",
    )


def open_preview(
    arguments: argparse.Namespace,
    cameras: Sequence[str],
    *,
    events: str,
    context: zmq.Context[Any] | None = None,
    keys: ServerKeys | None = None,
    pulse: Pulse | None = None,
) -> PreviewOutlet | None:
    """Return the outlet of previews as the arguments want it, None where they want none.  The caller closes it.

    Args:
        arguments: with `preview`, `preview_rate`, and `insecure` of `add_server_arguments`.
        cameras: their names.
        events: the endpoint of the events.
        context, keys, pulse: see `PreviewOutlet`.

    Raises:
        PublishError: the endpoint cannot be used.
        KeysError: the keys cannot be used.
    """
    if arguments.preview == "none":
        return None
    from edge.events.preview import preview_endpoint
    from edge.events.preview_outlet import PreviewOutlet

    endpoint = preview_endpoint(events) if arguments.preview == _NEXT else arguments.preview
    return PreviewOutlet(
        endpoint,
        cameras,
        rate=arguments.preview_rate,
        context=context,
        keys=keys,
        insecure=arguments.insecure,
        pulse=pulse,
    )
