"""What figures of methods share: a colour per family, a marker per width, and logarithmic axes with plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ntkfusion.reporting.summary import width_label

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
#: One per width.
MARKERS = ("v", "o", "^", "s", "D", "P")
#: Errors above this are drawn here: some are a thousand times those that matter.
CEILING = 5.0


def is_ours(name: str) -> bool:
    """Whether a method is the one this library proposes."""
    return name.startswith(OURS)


def hue(name: str) -> str:
    """The colour of a method."""
    if is_ours(name):
        return OURS_HUE
    return next((colour for start, colour in FAMILIES.items() if name.startswith(start)), OTHERS_HUE)


def show_widths(figure: Figure, widths: Sequence[float]) -> None:
    """A legend below the figure that says which marker is which width."""
    handles = [
        Line2D([], [], color=OTHERS_HUE, marker=marker, linestyle="", label=f"width {width_label(width)}")
        for width, marker in zip(widths, MARKERS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def show_logarithmic(axis: Axes, ceiling: float = math.inf) -> None:
    """Both axes logarithmic with 1, 2 and 5 of every decade; what lies at `ceiling` may be larger."""
    axis.set(xscale="log", yscale="log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter(FuncFormatter(lambda v, _: f"≥ {v:g}" if np.isclose(v, ceiling) else f"{v:g}"))
