"""The calibration as one picture: where good parts score, and where the thresholds lie."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calib.threshold import Decision
from edge.files import utf8_text
from edge.manifest import Calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

_MOST_BINS = 300
_GOOD, _LIMIT, _PIXEL, _ODD = "#3b7dd8", "#c0392b", "#d68910", "#8e44ad"


def draw(
    scores: Sequence[float], names: Sequence[str], calibration: Calibration, decision: Decision, title: str
) -> bytes:
    """Return a PNG: histogram and strip of the good scores, fitted density, thresholds, rate and bound in words.

    Args:
        scores: of the good images, shape `(n,)`.
        names: of the same images; outliers are named in the picture.
        calibration: the decision rule.
        decision: how it came about.
        title: what was calibrated.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    values = np.asarray(scores, np.float64)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    histogram, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    # Scores span a factor, not a range: on a logarithmic axis the fitted density is a plain bell.
    histogram.set_xscale("log")
    low = min(values.min(), calibration.pixel_threshold) / 1.15
    high = max(values.max(), calibration.threshold) * 1.15
    histogram.set_xlim(low, high)
    histogram.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if high < 8 * low else (1, 2, 5)))
    histogram.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    histogram.xaxis.set_minor_locator(NullLocator())
    _histogram(histogram, values, calibration, decision, (low, high))
    _strip(strip, values, names, decision)
    for axes in (histogram, strip):
        axes.axvline(calibration.threshold, color=_LIMIT, linewidth=2, label=f"threshold {calibration.threshold:.4g}")
        axes.axvline(
            calibration.pixel_threshold,
            color=_PIXEL,
            linestyle="--",
            label=f"pixel threshold {calibration.pixel_threshold:.4g}",
        )
    histogram.legend(loc="best", fontsize=9)
    histogram.set_ylabel("good images")
    # Names of files and folders are no mathematics, whatever dollars they hold.
    words = utf8_text(title) + "\n" + statement(calibration, decision)
    histogram.set_title(words, fontsize=10, parse_math=False)
    strip.set_xlabel("image score (higher = more anomalous)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def statement(calibration: Calibration, decision: Decision) -> str:
    """Return what the calibration promises, in words."""
    sure = f"{calibration.confidence:.4g}"
    if decision.method == "order":
        first = f"At confidence {sure}, at most {calibration.false_reject:.3g} of good parts are rejected,"
        first += f" whatever the distribution ({calibration.images} images)."
    else:
        first = f"At confidence {sure}, at most {calibration.false_reject:.3g} of good parts are rejected"
        first += f" if log-scores are normal ({calibration.images} images)."
    bound = f"From the counts alone, without assumptions: at most {calibration.false_reject_bound:.3g}"
    return f"{first}\n{bound} ({decision.exceeded} of {calibration.images} good images are above the threshold)."


def _histogram(
    axes: Axes, values: NDArray[np.float64], calibration: Calibration, decision: Decision, span: tuple[float, float]
) -> None:
    # Bins of half a standard deviation, so that one stray score does not widen them all.
    reach = np.log(values.max() / values.min()) + 1e-3
    bins = math.ceil(min(reach / max(0.5 * decision.log_std, 1e-3), _MOST_BINS))
    edges = np.geomspace(values.min() * 0.9995, values.max() * 1.0005, bins + 1)
    axes.hist(values, edges.tolist(), color=_GOOD, alpha=0.6, label=f"{values.size} good images")
    if decision.method == "tolerance" and decision.log_std > 0:
        x = np.geomspace(*span, 400)
        z = (np.log(x) - decision.log_mean) / decision.log_std
        density = np.exp(-0.5 * z * z) / (decision.log_std * np.sqrt(2 * np.pi))
        axes.plot(x, density * values.size * np.log(edges[1] / edges[0]), color=_GOOD, label="log-normal fit")


def _strip(axes: Axes, values: NDArray[np.float64], names: Sequence[str], decision: Decision) -> None:
    # Spread over the height by order, so that equal scores stay apart; no chance, so that the picture is repeatable.
    heights = np.arange(values.size) * 0.618034 % 1.0
    odd = list(decision.outliers)
    axes.scatter(values, heights, s=9, color=_GOOD, alpha=0.7, linewidths=0)
    if odd:
        axes.scatter(values[odd], heights[odd], s=36, color=_ODD, marker="x")
    for index in odd[:5]:
        axes.annotate(
            utf8_text(names[index]),
            (values[index], heights[index]),
            (-4, 4),
            textcoords="offset points",
            fontsize=8,
            color=_ODD,
            ha="right",
            parse_math=False,
        )
    axes.set_yticks([])
    axes.set_ylim(-0.2, 1.3)
