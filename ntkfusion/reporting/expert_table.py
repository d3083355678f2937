"""What became of the experts of a model, method by method: routing, and the errors of every expert by itself."""

from __future__ import annotations

import numpy as np

from ntkfusion.reporting.answer import ERRORS, methods
from ntkfusion.reporting.cells import Cell, error_cells
from ntkfusion.reporting.results import Comparison

#: Columns of `expert_cells`.
EXPERT_HEADER = (
    "method",
    "same expert",
    "flipped mass",
    *(f"{label}, {which}" for label in ERRORS.values() for which in ("median expert", "worst")),
)

EXPERTS_NOTE = (
    "Same expert: the share of (held-out token, mixture) pairs whose router chooses the same expert when all compared "
    "layers are compressed at once. Flipped mass: of the probability that the original routers give to the experts "
    "they choose, the share that is with the other pairs. Errors are those of each expert by itself, on the tokens "
    "that are routed to it; experts with fewer than two tokens have none."
)


def expert_cells(comparison: Comparison, width: float) -> list[list[Cell]]:
    """The experts at one width: one row per method, columns as in `EXPERT_HEADER`.

    Args:
        comparison: the results of a model with mixtures of experts.
        width: one of its widths.

    Returns:
        Rows of cells.
    """
    columns = [*_routing(comparison, width), *_errors(comparison, width)]
    names = methods(comparison)
    return [[Cell(name), *(column[i] for column in columns)] for i, name in enumerate(names)]


def _routing(comparison: Comparison, width: float) -> list[list[Cell]]:
    found = {change.method: change for change in comparison.routing if change.width == width}
    changes = [found.get(name) for name in methods(comparison)]
    flipped = np.array([np.nan if change is None else 1 - change.agreement for change in changes])
    mass = np.array([np.nan if change is None else change.flipped_mass for change in changes])
    agreement = [
        Cell(f"{100 * (1 - share):.1f} %" if np.isfinite(share) else "n/a", cell.best)
        for share, cell in zip(flipped, error_cells(flipped), strict=True)
    ]
    return [agreement, error_cells(mass)]


def _errors(comparison: Comparison, width: float) -> list[list[Cell]]:
    columns = []
    for error in ERRORS:
        values = [_of_experts(comparison, width, name, error) for name in methods(comparison)]
        for statistic in (np.median, np.max):
            columns.append(error_cells(np.array([statistic(v) if v.size else np.nan for v in values])))
    return columns


def _of_experts(comparison: Comparison, width: float, method: str, error: str) -> np.ndarray:
    """The errors of all experts of all layers that have one."""
    rows = [row for row in comparison.rows if (row.width, row.method) == (width, method)]
    values = [getattr(expert, error) for row in rows for expert in row.experts or ()]
    return np.array([value for value in values if value is not None], float)
