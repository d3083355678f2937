"""The numbers of one tensor: their conversion, and whether they are numbers at all."""

from __future__ import annotations

import numpy as np


def converted(stored: np.ndarray, dtype: str) -> np.ndarray:
    """An array in another dtype, the array itself if it has it already."""
    # float64 beyond the range of float32 becomes Inf, which the audit then reports
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(dtype, copy=False)


def value_problems(name: str, array: np.ndarray) -> list[str]:
    """How many entries are NaN or infinite, if any."""
    finite = np.isfinite(array)
    if finite.all():
        return []
    nan = int(np.isnan(array).sum())
    return [f"{name} holds {nan} NaN and {array.size - int(finite.sum()) - nan} infinite of {array.size} values"]
