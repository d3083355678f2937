"""The figures: output error against kernel errors, and errors against the number of calibration tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from kernel_distance_parts.labels import place_labels
from kernel_distance_parts.store import number
from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.summary import nearest_width, width_label

if TYPE_CHECKING:
    from kernel_distance_parts.blocks import Summary

#: Ours, and the hues of the others (Okabe and Ito), by the beginning of their names.
OURS, OURS_HUE, OTHERS_HUE = "ntk-fusion", "#D55E00", "#666666"
FAMILIES = {
    "mlp-fusion": "#0072B2",
    "svd": "#009E73",
    "autoencoder": "#8C6BB1",
    "kronecker": "#8C6BB1",
    "sketch": "#7A6A00",
    "mmd": "#7A6A00",
    "active-neurons": "#B5468B",
    "structured-pruning": "#B5468B",
}
MARKERS = ("v", "o", "^", "s", "D", "P")
#: Errors above this are drawn here: some are a thousand times those that matter.
CEILING = 5.0


def hue(name: str) -> str:
    """The colour of a method."""
    if name.startswith(OURS):
        return OURS_HUE
    return next((colour for start, colour in FAMILIES.items() if name.startswith(start)), OTHERS_HUE)


def distance_figure(summaries: Sequence[Summary]) -> Figure:
    """Output error against SGD kernel error, and against sign kernel error: one line of widths per method.

    Args:
        summaries: of every method and width.

    Returns:
        A figure of two panels; each method is named at the width nearest to 1/4.
    """
    widths = sorted({summary.width for summary in summaries})
    named = nearest_width(widths)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 15))
        panels = {"sgd_kernel_error": "SGD kernel error", "sign_kernel_error": "sign kernel error"}
        for axis, (error, title) in zip(figure.subplots(2, 1), panels.items(), strict=True):
            points = {(s.method, s.width): _point(s, error) for s in summaries}
            _draw(axis, points, widths)
            _logarithmic(axis, CEILING)
            axis.set(xlabel="output error", ylabel=title, title=f"{title} against output error, held-out tokens")
            axis.margins(0.06)
            labels = {name: point for (name, width), point in points.items() if width == named}
            place_labels(axis, labels, list(points.values()), hue, lambda name: name.startswith(OURS))
        handles = [
            matplotlib.lines.Line2D([], [], color=OTHERS_HUE, marker=m, linestyle="", label=f"width {width_label(w)}")
            for w, m in zip(widths, MARKERS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(widths))
    return figure


def _point(summary: Summary, error: str) -> tuple[float, float]:
    x, y = summary.mean("output_error"), summary.mean(error)
    return min(x, CEILING), min(y, CEILING)


def _draw(axis: Axes, points: Mapping[tuple[str, float], tuple[float, float]], widths: Sequence[float]) -> None:
    for name in dict.fromkeys(name for name, _ in points):
        ours = name.startswith(OURS)
        line = np.array([points[name, width] for width in widths if (name, width) in points])
        axis.plot(
            *line.T, color=hue(name), linewidth=2 if ours else 0.8, alpha=1 if ours else 0.45, zorder=3 if ours else 2
        )
        for width, marker in zip(widths, MARKERS, strict=False):
            if (name, width) in points:
                look: dict[str, Any] = {"s": 95 if ours else 42, "edgecolors": "white", "linewidths": 0.6}
                axis.scatter(*points[name, width], marker=marker, color=hue(name), zorder=4, **look)


def _logarithmic(axis: Axes, ceiling: float = math.inf) -> None:
    axis.set(xscale="log", yscale="log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter(FuncFormatter(lambda v, _: f"≥ {v:g}" if np.isclose(v, ceiling) else f"{v:g}"))


def overfitting_figure(curves: Mapping[str, Mapping[int, Any]]) -> Figure:
    """Errors on calibration tokens (dashed) and held-out ones against the number of calibration tokens.

    Args:
        curves: method → number of tokens → where → error → value.

    Returns:
        A figure of three panels.
    """
    panels = {
        "output_error": "output error",
        "sgd_kernel_error": "SGD kernel error",
        "sign_kernel_error": "sign kernel error",
    }
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 4.6))
        axes = list(figure.subplots(1, 3, sharey=True))
        for axis, (error, title) in zip(axes, panels.items(), strict=True):
            for (name, curve), marker in zip(curves.items(), "osD^vP", strict=False):
                for place, style in (("held-out", "-"), ("calibration", "--")):
                    values = [number(result[place][error]) for result in curve.values()]
                    look: dict[str, Any] = {"linestyle": style, "marker": marker, "color": hue(name)}
                    axis.plot(list(curve), values, label=f"{name}, {place}", **look)
            axis.set(title=title, xlabel="calibration tokens", xscale="log")
            counts = sorted({count for curve in curves.values() for count in curve})
            axis.xaxis.set_major_locator(FixedLocator(counts))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1024:g}k" if v >= 1024 else f"{v:g}"))
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("relative error, mean over layers")
        figure.legend(handles=axes[0].lines, loc="outside lower center", ncols=2, handlelength=3.2)
    return figure


def tradeoff_figure(curve: Sequence[Mapping[str, Any]]) -> Figure:
    """SGD kernel error against sign kernel error along the curve, both logarithmic, each point with its ω.

    Args:
        curve: points with "sgd_share", "sgd_kernel_error" and "sign_kernel_error".

    Returns:
        A figure of one panel.
    """
    points = [(number(point["sgd_kernel_error"]), number(point["sign_kernel_error"])) for point in curve]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.5, 4.2))
        axis = figure.subplots()
        axis.plot(*zip(*points, strict=True), marker="o", color=hue("ntk-fusion"))
        for point, place in zip(curve, points, strict=True):
            if 0.95 < point["sgd_share"] < 1:  # too close to ω = 1 for a label
                continue
            label = f"ω = {point['sgd_share']:g}"
            axis.annotate(label, place, xytext=(6, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel="SGD kernel error", ylabel="sign kernel error")
        _logarithmic(axis)
        axis.set_title("One set of constants for both kernels")
    return figure
