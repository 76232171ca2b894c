"""What `edge-run` shows and saves while it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from edge.cli import console, progress
from edge.errors import UsageError
from edge.events.schema import Event
from edge.frames import Slot
from edge.inspection.result import Verdict
from edge.station import OnEvent, Station
from edge.summary import Summary


class OverlaySaver:
    """Saves `ng` frames with what was found drawn on them.  A full disk ends the saving, not the station.

    Args:
        folder: made where it does not exist.

    Raises:
        UsageError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--save {folder}: {error.strerror or error}", "name a folder that can be written"
            ) from error

    def __call__(self, event: Event, mask: bytes, slot: Slot | None) -> None:
        """Save the picture of one event."""
        from edge.images import IMAGE_SUFFIXES, straightened, to_bgr, write_png
        from edge.overlay import draw_overlay

        if slot is None or event.verdict is not Verdict.NG or event.score is None or self._broken:
            return
        image = straightened(to_bgr(slot.pixels, slot.pixel_format), slot.lens)
        marked = slot.frame_mask.astype(bool)
        threshold = float("inf") if event.threshold is None else event.threshold
        picture = draw_overlay(
            image,
            event.verdict,
            score=event.score,
            threshold=threshold,
            mask=marked,
            roi=event.roi,
            regions=event.regions,
        )
        # Sources may be paths or addresses: keep what any file system can hold.
        name = Path(event.source)
        source = str(name.with_suffix("")) if name.suffix.lower() in IMAGE_SUFFIXES else str(name)
        source = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")[-100:]
        file = self._folder / f"{event.frame_id:06d}-{source}.png"
        try:
            write_png(file, picture)
        except OSError as error:
            self._broken = True
            console.print(
                f"[yellow]warning[/]: {escape(str(file))}: {error.strerror or error}; no more pictures are saved"
            )


@contextmanager
def show_progress(frames: int | None) -> Iterator[OnEvent | None]:
    """Show a progress bar where a person looks and the number of frames is known; yield what moves it on."""
    if frames is None or not console.is_terminal:
        if console.is_terminal:
            console.print("inspecting until Ctrl-C; edge-watch shows each verdict")
        yield None
        return
    verdicts: dict[str, int] = {}
    with progress(transient=True) as bar:
        task = bar.add_task("inspecting", total=frames, note="")

        def advance(event: Event, mask: bytes, slot: Slot | None) -> None:
            verdicts[event.verdict.value] = verdicts.get(event.verdict.value, 0) + 1
            note = " ".join(f"{name} {count}" for name, count in sorted(verdicts.items()))
            bar.update(task, advance=1, note=note)

        yield advance


def show_summaries(stations: Sequence[Station], as_json: bool) -> None:
    """Print what each station's run amounted to."""
    for station in stations:
        summary: Summary = station.summary
        name = f"{escape(station.name)}: " if len(stations) > 1 else ""
        console.print(f"[bold]{name}{summary.headline}[/]")
        if summary.frames:
            console.print(summary.table())
        if as_json:
            named = {"camera": station.name} if len(stations) > 1 else {}
            print(json.dumps({**named, **summary.as_dict()}))
