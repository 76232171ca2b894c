"""`edge-ask`: ask a running station for its status, for a part's inspection, or to change its bundle."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape

from edge.cli import CommandParser, command, console, positive_number
from edge.commands.key_arguments import add_client_arguments, client_keys
from edge.errors import PublishError
from edge.events.endpoint import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from edge.events.client import ControlClient
    from edge.events.security import ClientKeys

_EPILOG = f"""\
ENDPOINT is where the station publishes events; requests go to the next port, or to PATH.control.

exit codes:
   0  done
   1  the station refuses: it is not triggered by requests, or the bundle cannot take over
   2  arguments that make no sense
   5  no station answers, or no verdict came in time
  11  keys that are missing, malformed or open to others
  70  internal error

examples:
  edge-ask status
  edge-ask trigger P0815 --encoder 120034 --wait 2
  edge-ask switch /var/lib/redi/variant-b.plan --endpoint {DEFAULT_ENDPOINT}
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Ask one question and print the answer as one JSON line."""
    args = _parser().parse_args(argv)
    from edge.events.client import ControlClient
    from edge.events.control import control_endpoint
    from edge.events.requests import RequestError

    keys = client_keys(args)
    with ControlClient(control_endpoint(args.endpoint), keys=keys) as client:
        try:
            if args.action == "status":
                _status(client, args)
            elif args.action == "switch":
                _switch(client, args)
            else:
                _trigger(client, args, keys)
        except RequestError as error:
            console.print(f"[bold red]refused[/]: {escape(error.problem)} ({error.code})")
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="edge-ask",
        description="Ask a running station for its status, for a part's inspection, or to change its bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="status|trigger|switch")
    status = actions.add_parser("status", help="print the latest status of each camera")
    trigger = actions.add_parser("trigger", help="inspect one part; asked again, it is the same part")
    trigger.add_argument("part", help="the part's id")
    trigger.add_argument("--encoder", type=int, metavar="N", help="the conveyor's count")
    trigger.add_argument(
        "--deadline-ms", type=positive_number, metavar="MS", help="instead of the station's own --deadline-ms"
    )
    trigger.add_argument("--wait", type=positive_number, metavar="S", help="wait so long for the verdict and print it")
    switch = actions.add_parser("switch", help="inspect with another bundle, once its golden frames have passed")
    switch.add_argument("bundle", help="its path on the station's machine")
    for action in (status, trigger, switch):
        action.add_argument("--camera", default="", metavar="NAME", help="needed where the station has several")
        action.add_argument("--endpoint", default=DEFAULT_ENDPOINT, help="default: %(default)s")
        action.add_argument(
            "--timeout", type=positive_number, default=10.0, metavar="S", help="for the answer (default: %(default)g)"
        )
        add_client_arguments(action)
    return parser


def _print(value: object) -> None:
    print(json.dumps(msgspec.to_builtins(value)), flush=True)


def _status(client: ControlClient, args: argparse.Namespace) -> None:
    from edge.events.requests import Statuses, StatusRequest
    from edge.events.schema import Status

    answer = client.call("status", StatusRequest(args.camera), Statuses, args.timeout)
    for encoded in answer.statuses:
        _print(msgspec.msgpack.decode(encoded, type=Status))


def _switch(client: ControlClient, args: argparse.Namespace) -> None:
    from edge.events.requests import Switch, Switched

    bundle = str(Path(args.bundle).absolute())
    _print(client.call("switch", Switch(bundle, args.camera), Switched, max(args.timeout, 60.0)))


def _trigger(client: ControlClient, args: argparse.Namespace, keys: ClientKeys | None) -> None:
    from edge.events.codec import EventMessage
    from edge.events.requests import Trigger, Triggered
    from edge.events.subscriber import Subscriber

    request = Trigger(args.part, args.camera, args.encoder, args.deadline_ms)
    if args.wait is None:
        _print(client.call("trigger", request, Triggered, args.timeout))
        return
    with Subscriber(args.endpoint, camera=args.camera or None, keys=keys) as subscriber:
        until = time.monotonic() + args.timeout
        # The first message, at the latest the next heartbeat's, shows that the verdict would be heard too.
        while subscriber.receive(max(0.0, until - time.monotonic())) is None and time.monotonic() < until:
            continue
        answer = client.call("trigger", request, Triggered, args.timeout)
        if answer.seq is not None:
            _print(answer)
            return
        until = time.monotonic() + args.wait
        while (left := until - time.monotonic()) > 0:
            message = subscriber.receive(left)
            if isinstance(message, EventMessage) and message.event.part_id == args.part:
                _print(message.event)
                return
    raise PublishError(
        f"no verdict on {args.part} within {args.wait:g} s", "the station will still give it one: edge-watch --durable"
    )
