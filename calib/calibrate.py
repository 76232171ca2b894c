"""From good images' scores to a `Calibration`, with all that a person should be told about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from calib.scoring import GoodScores
from calib.threshold import Decision, choose_pixel_threshold, choose_threshold
from edge.errors import CalibrationError
from edge.manifest import Calibration, CompareSpec, Lens


@dataclass(frozen=True)
class Request:
    """What was asked for: rates between 0 and 1, `method` one of `calib.threshold.METHODS`.

    `roi` and `lens` are what the images were scored with; see `edge.manifest.Calibration`.
    """

    false_reject: float = 0.001
    confidence: float = 0.95
    method: str = "auto"
    pixel_rate: float = 1e-4
    min_region_px: int = 0
    pixel_size_mm: float | None = None
    roi: tuple[int, int, int, int] | None = None
    lens: Lens | None = None


def calibrate(good: GoodScores, request: Request, compare: CompareSpec) -> tuple[Calibration, Decision]:
    """Make the decision rule from good images alone.

    Outliers count among the images and in the bound; the pixel threshold and `good_mean`, `good_std`, `good_max` are
    made without them.

    Raises:
        CalibrationError: the images cannot support the request, or no part could ever exceed the threshold.
    """
    _refuse_zero(good)
    decision = _decide(good, request)
    # Each scale adds a cosine distance, at most 2, and smoothing never adds.
    highest_possible = 2.0 * len(compare.scales)
    if decision.threshold >= highest_possible:
        raise CalibrationError(
            f"the threshold would be {decision.threshold:.4g}, but no score of this model exceeds {highest_possible:g}",
            "the good images scatter too much: sort them, or train on more of them",
        )
    odd = set(decision.outliers)
    tails = [tail for index, tail in enumerate(good.tails) if index not in odd]
    scores = np.asarray([score for index, score in enumerate(good.scores) if index not in odd])
    calibration = Calibration(
        threshold=decision.threshold,
        pixel_threshold=choose_pixel_threshold(tails, good.pixels, request.pixel_rate, decision.threshold),
        false_reject=request.false_reject,
        false_reject_bound=decision.bound,
        confidence=request.confidence,
        images=decision.images,
        method=decision.method,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        good_mean=float(scores.mean()),
        good_std=float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
        good_max=float(scores.max()),
        min_region_px=request.min_region_px,
        pixel_size_mm=request.pixel_size_mm,
        roi=request.roi,
        lens=request.lens,
    )
    return calibration, decision


def _decide(good: GoodScores, request: Request) -> Decision:
    try:
        return choose_threshold(good.scores, request.false_reject, request.confidence, request.method)
    except CalibrationError as error:
        if not good.trained:
            raise
        left_out = f"{len(good.trained)} image(s) were left out because the model was trained on them"
        hint = error.hint or "photograph more good parts: those that the model was trained on score too low"
        raise CalibrationError(f"{error.problem}; {left_out}", hint) from error


def warnings_for(good: GoodScores, decision: Decision) -> list[str]:
    """Return what a person should look at, one sentence each, naming the images."""
    notes = []
    if good.skipped:
        names = ", ".join(path.name for path, _ in good.skipped[:5])
        notes.append(f"{len(good.skipped)} unreadable image(s) skipped: {names}{_more(good.skipped, 5)}")
    if good.trained:
        names = ", ".join(path.name for path in good.trained[:5])
        notes.append(
            f"{len(good.trained)} image(s) left out, as the model was trained on them and scores them too low: "
            f"{names}{_more(good.trained, 5)}"
        )
    if good.duplicates:
        pairs = ", ".join(f"{copy.name} = {first.name}" for copy, first in good.duplicates[:5])
        more = _more(good.duplicates, 5)
        notes.append(f"{len(good.duplicates)} image(s) with the same pixels as another, counted once: {pairs}{more}")
    if decision.outliers:
        notes.append(
            f"far above all others: {_named(good, decision.outliers)}; look at these, they may not be good parts"
        )
    if decision.heavy_tail:
        notes.append(
            f"the log-scores are not normal (Shapiro–Wilk p = {decision.normality:.2g}) and lean upwards, so more than "
            f"the stated rate may be rejected: rely on the bound; the highest are {_named(good, decision.highest)}"
        )
    return notes


def _refuse_zero(good: GoodScores) -> None:
    for path, score in zip(good.paths, good.scores, strict=True):
        if not (np.isfinite(score) and score > 0):
            raise CalibrationError(
                f"{path}: this good image scores {score}, but a score is finite and above 0",
                "is this the bundle that belongs to these images?",
            )


def _named(good: GoodScores, indices: tuple[int, ...]) -> str:
    return ", ".join(f"{good.paths[index].name} ({good.scores[index]:.4g})" for index in indices)


def _more(items: Sequence[object], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""
