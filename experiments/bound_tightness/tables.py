"""Ratios as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernel_distance_parts.tables import Table

TITLES = {
    "output": "Output: upper limit / measured, by the share of output directions that is evaluated",
    "clusters": "SGD kernel, clusters and leading directions: upper limit / measured, by the share of columns",
    "directions": "SGD kernel, leading directions alone: upper limit / measured, by the share of columns",
}


def cost(row: dict[str, Any], what: str, share: float) -> float:
    """Multiplications of a bound over those of measuring; kernels per pair, for many pairs."""
    (m, e, o), c = row["sizes"], row["c"]
    if what == "output":
        k = share * o
        return (m * (e + 1) + c * (e + 1) + 2 * c * o + k * (m + 2 * o)) / ((m + c) * (e + 1 + o))
    return ((4 if what == "clusters" else 2) * c + 2 * m * share) / (2 * m + 2 * c)


def share_table(rows: Sequence[dict[str, Any]], shares: Sequence[float], what: str) -> Table:
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
    return Table(TITLES[what], columns, lines, (note,))


def plain_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The bounds of docs/theory.md that use majorants of every neuron."""
    lines = [
        (f"{row['layer']}, {row['width']:g}", *(_cell(row["plain"][name]) for name in ("output", "kernel")))
        for row in rows
    ]
    return Table("Bounds by majorants of every neuron", ("layer, width", "output", "SGD kernel"), lines)


def _cell(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['high']:.1f}, {found['worst']:.3g})"
