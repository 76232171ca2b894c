"""Charts of an evaluation as inline SVG, in the page's own colours so that they follow its light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.metrics import Curve, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for the page's CSS variables in the drawing, replaced by them in the SVG.
_INK = "#010101"
_LINE = "#020202"
_VARIABLES = {_INK: "var(--ink)", _LINE: "var(--line)"}

# These read well on white and on near-black, and with colour-blind eyes.
_GOOD = "#3987c9"
_DEFECT = "#e0702b"
_IMAGE = "#8a6bd1"
_PIXEL = "#1f9e89"


def draw_charts(
    curves: Curves, good: Sequence[float], defect: Sequence[float], threshold: float | None
) -> dict[str, str]:
    """Return SVG texts by title: score histogram, and each of ROC, precision–recall and PRO that is defined."""
    charts = {"Image scores": _histogram(good, defect, threshold)}
    levels = {"image": _IMAGE, "pixel": _PIXEL}
    roc = {"image": curves.image_roc, "pixel": curves.pixel_roc}
    if any(roc.values()):
        figure, axes = _axes("false-positive rate", "recall")
        axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle=(0, (4, 3)))
        _draw_levels(axes, roc, levels)
        charts["ROC"] = _svg(figure, "ROC curves")
    pr = {"image": curves.image_pr, "pixel": curves.pixel_pr}
    if any(pr.values()):
        figure, axes = _axes("recall", "precision")
        _draw_levels(axes, pr, levels)
        charts["Precision–recall"] = _svg(figure, "precision-recall curves")
    if curves.pro:
        charts["Per-region overlap (PRO)"] = _pro(curves.pro)
    return charts


def _histogram(good: Sequence[float], defect: Sequence[float], threshold: float | None) -> str:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes("image score", "images")
    edges = np.histogram_bin_edges([*good, *defect, *([] if threshold is None else [threshold])], bins=36)
    for scores, colour, label in ((good, _GOOD, "good"), (defect, _DEFECT, "defect")):
        if scores:
            axes.hist(scores, edges.tolist(), color=colour, alpha=0.72, label=f"{label} ({len(scores)})")
    if threshold is not None:
        axes.axvline(threshold, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.4g}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    _legend(axes)
    return _svg(figure, "histogram of image scores by class")


def _pro(curve: Curve) -> str:
    figure, axes = _axes("false-positive rate (pixels)", "mean overlap of regions")
    axes.fill_between(curve.x, curve.y, color=_PIXEL, alpha=0.12, linewidth=0)
    axes.plot(curve.x, curve.y, color=_PIXEL, linewidth=2)
    axes.axvline(0.05, color=_INK, linewidth=1, linestyle=(0, (2, 3)), alpha=0.7)
    axes.text(0.056, 0.04, "limit 0.05", color=_INK, fontsize=9)
    axes.set_xlim(0, 0.3)
    axes.set_ylim(0, 1.02)
    return _svg(figure, "per-region overlap against the false-positive rate, up to 0.3")


def _draw_levels(axes: Axes, curves: dict[str, Curve | None], colours: dict[str, str]) -> None:
    for level, curve in curves.items():
        if curve:
            axes.plot(curve.x, curve.y, color=colours[level], linewidth=2, label=level)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    _legend(axes)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)
    axes.tick_params(colors=_INK, length=0, labelsize=9, pad=5)
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", frameon=False, labelcolor=_INK, fontsize=9)


def _svg(figure: Figure, description: str) -> str:
    """Return the figure as an `<svg>` element that takes its width, font and neutral colours from the page."""
    import matplotlib

    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text, and equal charts are equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "redi"}):
        figure.savefig(text, format="svg", metadata=nothing)
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    # One page holds several drawings: their groups' ids would clash, and nothing refers to them.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    view_box = re.search(r'viewBox="[^"]*"', drawing)
    assert view_box
    element = f'<svg {view_box[0]} role="img" aria-label="{description}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"^<svg[^>]*>", element, drawing)
