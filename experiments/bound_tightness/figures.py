"""Measured against bound, and what a larger share buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

NAMES = {"output": "output", "clusters": "SGD kernel, clusters", "directions": "SGD kernel, directions alone"}


def scatter_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Upper limits at the middle share over measured errors, with the diagonal that they must not cross."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("output", "kernel"), strict=True):
        points = [np.asarray(row[f"{what}_points"]) for row in rows]
        for row, part in zip(rows, points, strict=True):
            axes.scatter(part[:, 0], part[:, 1], s=4, alpha=0.5, label=f"{row['layer']}, {row['width']:g}")
        # a few pairs hardly differ at all; their points would squeeze the others
        low, high = np.quantile(np.concatenate(points)[:, 0], [0.01, 1])
        axes.plot([low, high], [low, high], color="black", linewidth=1)
        axes.set(
            xscale="log", yscale="log", xlim=(low, high * 1.1), xlabel="measured", ylabel="upper limit", title=what
        )
    figure.axes[0].legend(title="layer, width", fontsize=6, ncols=2)
    return figure


def curve_figure(rows: Sequence[dict[str, Any]], shares: np.ndarray) -> Figure:
    """Median ratios over shares, a line per layer and width."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (what, title) in zip(figure.subplots(1, 3, sharey=True), NAMES.items(), strict=True):
        for row in rows:
            medians = [found["median"] for found in row[what]]
            style = "-" if row["width"] <= 0.25 else "--"
            axes.plot(shares, medians, style, marker="o", markersize=3, label=f"{row['layer']}, {row['width']:g}")
        axes.axhline(3, color="black", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel="share evaluated", title=title)
    figure.axes[0].set_ylabel("median of upper limit / measured")
    figure.axes[0].legend(title="layer, width", fontsize=6, ncols=2)
    return figure
