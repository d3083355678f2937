"""Cells of tables, and which of a column is the best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ntkfusion.reporting.answer import format_error, is_best


class Cell(NamedTuple):
    """The text of a table cell, and whether it is the best of its column."""

    text: str
    best: bool = False


def error_cells(values: np.ndarray) -> list[Cell]:
    """A column of errors, the lowest of them marked."""
    return [Cell(format_error(float(v)), best) for v, best in zip(values, is_best(values), strict=True)]
