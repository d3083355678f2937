"""Ratios as tables, measured against bound, and what a larger share buys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.common.store import Result
from experiments.common.tables import ResultTable

TITLES = {
    "output": "Output: upper limit / measured, by the share of output directions that is evaluated",
    "clusters": "SGD kernel, clusters and leading directions: upper limit / measured, by the share of columns",
    "directions": "SGD kernel, leading directions alone: upper limit / measured, by the share of columns",
}
#: What a panel of the curves shows.
NAMES = {"output": "output", "clusters": "SGD kernel, clusters", "directions": "SGD kernel, directions alone"}


def cost(row: Result, what: str, share: float) -> float:
    """Multiplications of a bound over those of measuring; kernels per pair, for many pairs."""
    (m, e, o), c = row["sizes"], row["c"]
    if what == "output":
        k = share * o
        return (m * (e + 1) + c * (e + 1) + 2 * c * o + k * (m + 2 * o)) / ((m + c) * (e + 1 + o))
    return ((4 if what == "clusters" else 2) * c + 2 * m * share) / (2 * m + 2 * c)


def share_table(rows: Sequence[Result], shares: Sequence[float], what: str) -> ResultTable:
    """One row per layer and width: median (95 %, worst) for each share."""
    columns = ("layer, width", "measured", *(f"share {share:g}" for share in shares), "cost")
    measured = "output_error" if what == "output" else "kernel_error"
    lines = [
        (
            f"{row['layer']}, {row['width']:g}",
            f"{row[measured]:.2f}",
            *(_cell(found) for found in row[what]),
            " ".join(f"{cost(row, what, share):.2f}" for share in shares),
        )
        for row in rows
    ]
    note = (
        "Median (95 % quantile, worst) over inputs resp. pairs; measured: relative Frobenius error. Cost: "
        "multiplications relative to measuring, for each share; of kernels per pair, for many pairs."
    )
    return ResultTable(TITLES[what], columns, lines, (note,))


def plain_table(rows: Sequence[Result]) -> ResultTable:
    """The bounds of docs/theory.md that use majorants of every neuron."""
    lines = [
        (f"{row['layer']}, {row['width']:g}", *(_cell(row["plain"][name]) for name in ("output", "kernel")))
        for row in rows
    ]
    return ResultTable("Bounds by majorants of every neuron", ("layer, width", "output", "SGD kernel"), lines)


def _cell(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['high']:.1f}, {found['worst']:.3g})"


def scatter_figure(rows: Sequence[Result]) -> Figure:
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


def curve_figure(rows: Sequence[Result], shares: np.ndarray) -> Figure:
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
