"""A comparison as pictures: errors by width and by layer.

Figures are built without pyplot, so that importing or calling this never opens a window or changes global settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ntkfusion.reporting.results import Comparison
from ntkfusion.reporting.summary import (
    ERRORS,
    averaged,
    error_grid,
    format_error,
    layers,
    mean_errors,
    methods,
    width_label,
    widths,
)

#: Resolution of written pictures: twelve inches stay sharp on a screen of double density.
DPI = 144

#: On a logarithmic axis anything smaller is drawn here; a rounding error of 1e-8 would squash all the rest.
FLOOR = 1e-3

#: Methods beside each other below a figure.
LEGEND_COLUMNS = 4

#: Look of every figure, as matplotlib settings.
RC: dict[Any, Any] = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False}

RC |= {"axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "legend.frameon": False}

RC |= {"figure.constrained_layout.use": True}

# One hue per family of methods (Okabe and Ito's colour-blind safe palette, then four more), one marker per method.
_HUES = ("#0072B2", "#D55E00", "#009E73", "#B5468B", "#7A6A00", "#444444", "#56B4E9", "#E69F00")

_HUES += ("#6A3D9A", "#8C564B", "#17A2A2", "#8FBC1A")

_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "8", "d", "*")

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (5, 1, 1, 1, 1, 1)))


def error_by_width(comparison: Comparison) -> Figure:
    """The three errors against the width, means over layers; sorted dots if there is one width only.

    Args:
        comparison: the results.

    Returns:
        A figure of three panels.
    """
    shown = widths(comparison)
    means = [mean_errors(comparison, width) for width in shown]
    curves = {error: np.stack([mean[error] for mean in means], axis=1) for error in ERRORS}
    if len(shown) == 1:
        return _dots(comparison, curves, f"Errors at width {width_label(shown[0])}, {averaged(comparison)}")
    figure, axes = _lines(comparison, np.asarray(shown), curves, f"Errors by width, {averaged(comparison)}")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(shown))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda width, _: width_label(width)))
        axis.set_xlabel("width (kept fraction of the neurons)")
    return figure


def error_by_layer(comparison: Comparison, width: float) -> Figure:
    """The three errors in every layer at one width; sorted dots if there is one layer only.

    Args:
        comparison: the results.
        width: one of its widths.

    Returns:
        A figure of three panels.
    """
    shown = layers(comparison)
    curves = {error: error_grid(comparison, width, error) for error in ERRORS}
    if len(shown) == 1:
        return _dots(comparison, curves, f"Errors in layer {shown[0]} at width {width_label(width)}")
    figure, axes = _lines(comparison, np.asarray(shown), curves, f"Errors by layer at width {width_label(width)}")
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
        axis.set_xlabel("layer")
    return figure


def save_png(figure: Figure, path: Path | BytesIO, dpi: int = DPI) -> None:
    """Write a figure as PNG, byte for byte the same for the same figure.

    Args:
        figure: any figure.
        path: file to write, or a buffer.
        dpi: pixels per inch.
    """
    with warnings.catch_warnings():
        # a token in a script that the font lacks shows as a box, which is no reason to disturb the user
        warnings.filterwarnings("ignore", message="Glyph")
        FigureCanvasAgg(figure)
        figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None}, facecolor="white")


def _lines(
    comparison: Comparison, x: np.ndarray, curves: Mapping[str, np.ndarray], title: str
) -> tuple[Figure, list[Axes]]:
    names = methods(comparison)
    legend_rows = -(-(len(names) + 1) // LEGEND_COLUMNS)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 4.6 + 0.4 * legend_rows))
        axes = list(figure.subplots(1, len(ERRORS), sharey=True))
        for axis, (error, values) in zip(axes, _scaled(axes, "y", curves).items(), strict=True):
            for name, curve, style in zip(names, values, _styles(names), strict=True):
                axis.plot(x, curve, label=name, **style)
            axis.set_title(ERRORS[error])
            axis.margins(x=0.06)
        axes[0].set_ylabel("relative error")
        figure.suptitle(title)
        handles = sorted(axes[0].lines, key=lambda line: line.get_label() not in names)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, handlelength=3.2)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure, axes


def _dots(comparison: Comparison, curves: Mapping[str, np.ndarray], title: str) -> Figure:
    """One row per method, the lowest output error on top: lines through a single point would be no lines."""
    names = methods(comparison)
    order = np.argsort(curves["output_error"][:, 0], kind="stable")
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 1.5 + 0.34 * len(names)))
        axes = list(figure.subplots(1, len(ERRORS), sharex=True, sharey=True))
        for axis, (error, values) in zip(axes, _scaled(axes, "x", curves).items(), strict=True):
            for place, i in enumerate(order):
                axis.plot(values[i], [place], **{**_styles(names)[i], "markersize": 8})
                at = float(np.nan_to_num(values[i, 0], nan=axis.get_xlim()[0]))
                style = {"textcoords": "offset points", "va": "center", "fontsize": 9.5}
                note = axis.annotate(format_error(float(curves[error][i, 0])), (at, place), (8, 0), **style)
                note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
            axis.set_title(ERRORS[error])
            axis.set_xlabel("relative error")
        axes[0].set_yticks(range(len(names)), [names[i] for i in order], parse_math=False)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        figure.suptitle(title)
    return figure


def _scaled(axes: Sequence[Axes], which: str, curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put the error axis on a linear scale from 0, or a logarithmic one for a wide range; return what to draw."""
    clean = {error: np.where(np.isfinite(values), values, np.nan) for error, values in curves.items()}
    values = np.concatenate([v.ravel() for v in clean.values()])
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)
    log = high > 10 * max(low, FLOOR)
    for axis in axes:
        scale = getattr(axis, f"{which}axis")
        if log:
            axis.set(**{f"{which}scale": "log"})
            scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
            scale.set_minor_locator(NullLocator())
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        limits = (max(low, FLOOR) / 1.3, high * (2 if which == "x" else 1.3)) if log else (0, high * 1.25 or 1.0)
        axis.set(**{f"{which}lim": limits})
        if high > 0.8:
            draw = axis.axhline if which == "y" else axis.axvline
            draw(1.0, color="#888888", linewidth=1, label="an output or kernel of zeros")
    return {error: np.maximum(v, FLOOR) for error, v in clean.items()} if log else clean


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """A hue per family (a name that begins another one, up to a "-" or "+"), paler and dashed for its later members.

    Members of a family often have equal errors: the thinner line on top leaves the thicker one visible.
    """
    family = [min((n for n in names if n == name or name.startswith((f"{n}-", f"{n}+"))), key=len) for name in names]
    hues = {head: _HUES[i % len(_HUES)] for i, head in enumerate(dict.fromkeys(family))}
    styles = []
    for i, head in enumerate(family):
        member, size = family[:i].count(head), family.count(head)
        pale = 0.45 * member / max(size - 1, 1)
        colour = tuple(pale + (1 - pale) * part for part in to_rgb(hues[head]))
        shape = {"linestyle": _DASHES[member % len(_DASHES)], "marker": _MARKERS[i % len(_MARKERS)]}
        thin = {"linewidth": max(2.6 - 0.2 * member, 1.8), "markersize": max(9 - 0.5 * member, 7)}
        styles.append({"color": colour, "markeredgecolor": "white", "markeredgewidth": 0.6, **shape, **thin})
    return styles
