"""Triggers that come as requests at the station's control endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from edge.events import requests
from edge.events.control import Control
from edge.events.requests import RequestError, Trigger, Triggered
from edge.parts import Parts, TriggerRefusedError


def serve_triggers(control: Control, parts: Mapping[str, Parts]) -> None:
    """Let a control socket start inspections.

    Args:
        control: not started yet.
        parts: those of each camera that takes requests, by the camera's name.
    """

    def trigger(request: Trigger) -> Triggered:
        camera = request.camera or (next(iter(parts)) if len(parts) == 1 else "")
        if camera not in parts:
            if not parts:
                raise RequestError(
                    requests.NOT_TRIGGERED, "this station is not triggered by requests: edge-run --trigger request"
                )
            raise RequestError(
                requests.UNKNOWN_CAMERA, f"no camera {camera!r} takes triggers, name one of {', '.join(parts)}"
            )
        try:
            accepted = parts[camera].trigger(request.part_id, encoder=request.encoder, deadline_ms=request.deadline_ms)
        except TriggerRefusedError as error:
            raise RequestError(requests.BUSY, str(error)) from error
        part = accepted.part
        return Triggered(part.part_id, accepted.new, accepted.durable, part.journal_id, part.seq)

    control.register("trigger", Trigger, trigger)
