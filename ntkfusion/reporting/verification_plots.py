"""Figures of theory checks: measured against bound, looseness by layer and width, trajectories."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntkfusion.reporting.plots import RC
from ntkfusion.theory.check import Curve, Outcome, Row

#: At most so many points of one comparison are drawn, spread over its order.
MOST_POINTS = 2000
_DASHES = ("-", "--", ":", "-.")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def scatter_figure(outcome: Outcome) -> Figure:
    """Every comparison's numbers against their bounds, on logarithmic axes with the diagonal."""
    with matplotlib.rc_context(RC):
        figure = _figure(8, 6)
        axes = figure.subplots()
        for row in outcome.rows:
            measured, bound = _points(row)
            if measured.size:
                axes.scatter(measured, bound, s=5, alpha=0.5, label=row.case, rasterized=True)
        low, high = axes.get_xlim()
        axes.set_xscale("log")
        axes.set_yscale("log")
        low = max(low, min((_points(row)[0].min() for row in outcome.rows if _points(row)[0].size), default=1.0) / 2)
        axes.plot([low, high], [low, high], color="black", linewidth=1)
        axes.set_xlabel("measured")
        axes.set_ylabel("bound")
        if len(outcome.rows) <= 12:
            axes.legend(fontsize=8, loc="lower right", markerscale=2)
        return figure


def _points(row: Row) -> tuple[np.ndarray, np.ndarray]:
    positive = np.flatnonzero((row.measured > 0) & (row.bound > 0) & np.isfinite(row.bound))
    chosen = positive[:: max(1, positive.size // MOST_POINTS)]
    return row.measured[chosen], row.bound[chosen]


def tightness_figure(outcome: Outcome) -> Figure:
    """Median of bound / measured by layer, a line per kind of comparison and width."""
    lines: dict[tuple[str, float | None], list[Row]] = {}
    for row in outcome.rows:
        if row.layer is not None and row.ratio == row.ratio:
            lines.setdefault((row.case.rsplit(", ", 1)[-1], row.width), []).append(row)
    with matplotlib.rc_context(RC):
        figure = _figure(8, 5)
        axes = figure.subplots()
        for number, ((name, width), rows) in enumerate(lines.items()):
            ordered = sorted(rows, key=lambda row: row.layer or 0)
            label = name if width is None else f"{name}, width {width:g}"
            values = [row.ratio for row in ordered]
            axes.plot([row.layer or 0 for row in ordered], values, _DASHES[number % 4], marker="o", label=label)
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.set_ylabel("bound / measured (median)")
        axes.axhline(1, color="black", linewidth=1)
        axes.legend(fontsize=8)
        return figure


def curve_figure(curve: Curve) -> Figure:
    """Lines on top of each other, later ones dashed so that earlier ones show through."""
    with matplotlib.rc_context(RC):
        figure = _figure(8, 5)
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(curve.lines.items()):
            axes.plot(x, y, _DASHES[number % 4], linewidth=2.5 - 0.3 * min(number, 5), label=name)
        if curve.log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_title(curve.title)
        axes.set_xlabel(curve.x)
        axes.set_ylabel(curve.y)
        axes.legend(fontsize=8)
        return figure
