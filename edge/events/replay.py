"""The operations that every station answers: `replay` and `status`."""

from __future__ import annotations

from collections.abc import Sequence

from edge.events import requests
from edge.events.backlog import JournalUnavailableError
from edge.events.codec import encode_status
from edge.events.control import Control
from edge.events.publisher import Publisher
from edge.events.requests import Lost, Replay, Replayed, RequestError, Statuses, StatusRequest


def serve_events(control: Control, publishers: Sequence[Publisher]) -> None:
    """Let a control socket replay the events of these cameras and tell their status."""
    by_camera = {publisher.camera: publisher for publisher in publishers}

    def find(camera: str) -> Publisher:
        if camera not in by_camera:
            raise RequestError(requests.UNKNOWN_CAMERA, f"this station has no camera {camera!r}")
        return by_camera[camera]

    def replay(request: Replay) -> Replayed:
        journal = find(request.camera).journal
        if journal is None:
            raise RequestError(requests.UNKNOWN_JOURNAL, "this station keeps no journal")
        try:
            page = journal.read(
                request.journal_id,
                request.after_seq,
                limit=min(request.limit, requests.MAX_REPLAY_EVENTS),
                max_bytes=requests.MAX_REPLAY_BYTES,
            )
        except JournalUnavailableError as error:
            raise RequestError(requests.UNAVAILABLE, f"the journal cannot be read now: {error}") from error
        if page is None:
            raise RequestError(requests.UNKNOWN_JOURNAL, f"journal {request.journal_id} is not kept here")
        return Replayed(
            journal_id=page.journal_id,
            first_seq=page.first_seq,
            last_seq=page.last_seq,
            through_seq=page.through_seq,
            events=[(row.header, row.mask) for row in page.rows],
            lost=[Lost(*each) for each in page.lost],
            next_journal_id=page.next_journal_id,
        )

    def status(request: StatusRequest) -> Statuses:
        asked = [find(request.camera)] if request.camera else publishers
        latest = [publisher.latest_status() for publisher in asked]
        return Statuses([encode_status(each)[1] for each in latest if each is not None])

    # A disk may be slow, and triggers do not wait for it.
    control.register("replay", Replay, replay, slow=True)
    control.register("status", StatusRequest, status)
