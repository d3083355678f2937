"""Kernels as pictures: the original and the compressed ones side by side."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntkfusion.errors import InputError
from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.results import KernelGallery
from ntkfusion.reporting.summary import format_error, width_label

#: Most tokens that still get a label.
MOST_TOKENS = 40


def kernel_heatmaps(gallery: KernelGallery, kind: str) -> Figure:
    """The original kernel and every compressed one, on the original's colour scale.

    Args:
        gallery: kernels of one layer, "original" among them.
        kind: which of its kernels.

    Returns:
        A figure with one panel per kernel; the original comes first and carries the tokens.

    Raises:
        InputError: if the gallery has no such kernels or no original.
    """
    kernels = dict(gallery.kernels.get(kind, {}))
    if "original" not in kernels:
        raise InputError(f"the gallery has no original {kind} kernel; it has {sorted(gallery.kernels)}")
    original = kernels.pop("original")
    with matplotlib.rc_context({**RC, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes, size = _heatmap_grid(len(kernels))
        colours = colour_scale(original)
        for axis, (name, kernel) in zip(axes, [("original", original), *kernels.items()], strict=True):
            axis.imshow(kernel, interpolation="nearest", **colours)
            error = format_error(float(np.linalg.norm(kernel - original) / np.linalg.norm(original)))
            below = f"error {error}" if axis is not axes[0] else f"{len(original)} tokens"
            axis.set_title(f"{name}\n{below}", fontsize=10.5, parse_math=False)
            axis.set(xticks=[], yticks=[], anchor="N")
        if len(gallery.tokens) <= MOST_TOKENS:
            font = min(10.0, 0.8 * 72 * size / len(gallery.tokens))
            axes[0].set_yticks(range(len(original)), gallery.tokens, parse_math=False, fontsize=font)
            axes[0].tick_params(length=0)
        bar: dict[str, Any] = {"extend": "both", "shrink": 0.7, "aspect": 35, "fraction": 0.04}
        figure.colorbar(axes[0].images[0], ax=axes, label="kernel entry", **bar)
        called = {"sgd": "SGD"}.get(kind, kind)
        figure.suptitle(f"The {called} kernel of layer {gallery.layer} at width {width_label(gallery.width)}")
    return figure


def _heatmap_grid(count: int) -> tuple[Figure, list[Axes], float]:
    """Panels for the original and `count` more, and the original's inches: among many it is twice as large."""
    big = 2 if count > 3 else 1
    columns = min(5, 2 + (count + 1) // 2) if big == 2 else 1 + count
    free = [(i, j) for i in range(2 + count) for j in range(columns) if i >= big or j >= big][:count]
    rows = max([big, *(i + 1 for i, _ in free)])
    breadth = min(12.0, 3.6 * columns + 2)
    side = (breadth - 1.9) / columns
    figure = Figure(figsize=(breadth, rows * (side + 0.5) + 0.4))
    grid = figure.add_gridspec(rows, columns)
    axes = [figure.add_subplot(grid[:big, :big]), *(figure.add_subplot(grid[i, j]) for i, j in free)]
    return figure, axes, big * side


def colour_scale(kernel: np.ndarray) -> dict[str, Any]:
    """Colour map and limits that show a kernel: centred at zero if it has clearly negative entries."""
    finite = kernel[np.isfinite(kernel)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    if low < -0.05 * high:
        most = max(-low, high)
        return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    return {"cmap": "viridis", "vmin": low, "vmax": high if high > low else low + 1}
