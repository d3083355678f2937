"""Figures of theory checks: measured against bound, looseness by layer and width, trajectories."""

from __future__ import annotations

import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.summary import width_label
from ntkfusion.verification.outcome import CheckCurve, CheckOutcome, CheckRow

#: At most so many points of one form are drawn, spread over its order.
MOST_POINTS = 4000

#: Of the smallest measured numbers this share, where differences happen to cancel, is outside the picture.
OUTSIDE = 0.005

_DASHES = ("-", "--", ":", "-.")

_MARKERS = ("o", "s", "^", "D", "v", "P")

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B5468B", "#7A6A00", "#444444", "#56B4E9", "#E69F00")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def form_of(row: CheckRow) -> str:
    """What is compared: the end of a row's name that is no layer, width or residual, such as the form of a bound."""
    parts = [part for part in row.case.split(", ") if not re.search(r"\b(layer|width|residual) [\d.e-]+$", part)]
    return parts[-1] if parts else row.case


def has_scatter(outcome: CheckOutcome) -> bool:
    """Whether some comparison has several numbers, with a bound that is not just a tolerance."""
    return bool(_clouds(outcome))


def has_tightness(outcome: CheckOutcome) -> bool:
    """Whether some comparison belongs to a layer and has a ratio."""
    return any(row.layer is not None and row.ratio == row.ratio for row in outcome.rows)


def scatter_figure(outcome: CheckOutcome) -> Figure:
    """Every comparison's numbers against their bounds, a colour per form, on logarithmic axes with the diagonal."""
    clouds = _clouds(outcome)
    with matplotlib.rc_context(RC):
        figure = _figure(9.0, 6.0)
        axes = figure.subplots()
        for number, (form, (measured, bound)) in enumerate(clouds.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            axes.scatter(measured, bound, s=4, alpha=0.35, linewidths=0, color=colour, label=form, rasterized=True)
        everything = np.concatenate([measured for measured, _ in clouds.values()])
        low, high = np.quantile(everything, OUTSIDE) / 2, 2 * everything.max()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=low)
        axes.plot([low, high], [low, high], color="black", linewidth=1, label="bound = measured")
        axes.set_xlabel("measured")
        axes.set_ylabel("bound")
        _legend(figure, axes)
        return figure


def _clouds(outcome: CheckOutcome) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By form, the measured numbers above 0 with their bounds."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for row in outcome.rows:
        positive = (row.measured > 0) & (row.bound > 0) & np.isfinite(row.bound)
        if not (row.exact or row.at_least) and row.count > 1 and positive.any():
            found.setdefault(form_of(row), []).append((row.measured[positive], row.bound[positive]))
    clouds = {}
    for form, parts in found.items():
        measured, bound = (np.concatenate(side) for side in zip(*parts, strict=True))
        step = max(1, measured.size // MOST_POINTS)
        clouds[form] = (measured[::step], bound[::step])
    return clouds


def tightness_figure(outcome: CheckOutcome) -> Figure:
    """Median of bound / measured by layer: a panel per model, a colour per form, a line style per width."""
    models: dict[str, list[CheckRow]] = {}
    for row in outcome.rows:
        if row.layer is not None and row.ratio == row.ratio:
            models.setdefault(row.case.split(", ", 1)[0], []).append(row)
    names = list(dict.fromkeys(_line_of(row) for rows in models.values() for row in rows))
    widths = sorted({row.width for rows in models.values() for row in rows if row.width is not None})
    with matplotlib.rc_context(RC):
        figure = _figure(max(7.0, 4.5 * len(models) + 2), 5.0)
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, models.items(), strict=True):
            _tightness_panel(axes, rows, names, widths)
            axes.set_title(name)
        panels[0].set_ylabel("bound / measured (median)")
        handles = [Line2D([], [], label=name, **_style(number)) for number, name in enumerate(names)]
        if len(widths) > 1:
            lines = zip(_DASHES, widths, strict=False)
            handles += [
                Line2D([], [], color="black", ls=ls, label=f"width {width_label(width)}") for ls, width in lines
            ]
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, handlelength=3)
        return figure


def _line_of(row: CheckRow) -> str:
    """A row's name without the model in front, layer and width."""
    parts = [part for part in row.case.split(", ")[1:] if not re.search(r"\b(layer|width) [\d.e-]+$", part)]
    return ", ".join(parts)


def _style(number: int) -> dict[str, Any]:
    return {"marker": _MARKERS[number % len(_MARKERS)], "color": _COLOURS[number % len(_COLOURS)]}


def _tightness_panel(axes: Axes, rows: list[CheckRow], names: list[str], widths: list[float]) -> None:
    for number, name in enumerate(names):
        for place, width in enumerate(widths or [None]):
            line = sorted((row.layer or 0, row.ratio) for row in rows if (_line_of(row), row.width) == (name, width))
            if line:
                axes.plot(*zip(*line, strict=True), ls=_DASHES[place % len(_DASHES)], **_style(number))
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.1)
    axes.set_xlabel("layer")


def curve_figure(curve: CheckCurve) -> Figure:
    """Lines on top of each other, later ones dashed so that earlier ones show through."""
    with matplotlib.rc_context(RC):
        figure = _figure(9.0, 5.0)
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(curve.lines.items()):
            style: dict[str, Any] = {"linewidth": 2.8 - 0.3 * min(number, 5), "color": _COLOURS[number % len(_COLOURS)]}
            axes.plot(x, y, _DASHES[number % 4], label=name, **style)
        if curve.log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_title(curve.title)
        axes.set_xlabel(curve.x)
        axes.set_ylabel(curve.y)
        _legend(figure, axes)
        return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """To the right of the panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize=9, handlelength=3)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
            if isinstance(handle, PathCollection):
                handle.set_sizes([25])
    for text in legend.get_texts():
        text.set_parse_math(False)
