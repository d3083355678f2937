"""Rank correlations: does one number order the methods as another does, and how sure is that?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

#: Of a task: a measure and a score, [methods, widths]; NaN where there is none.
Pair = tuple[Float[np.ndarray, "M W"], Float[np.ndarray, "M W"]]


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's ρ, the correlation of ranks (of equals: their mean); NaN for fewer than 3 pairs or without spread.

    >>> round(spearman([(1.0, 10.0), (2.0, 5.0), (3.0, 30.0), (4.0, 40.0)]), 6)
    0.8
    """
    if len(pairs) < 3:
        return float("nan")
    ranks = rankdata(np.array(pairs), axis=0)
    if (ranks.std(axis=0) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks.T)[0, 1])


def bootstrap(tasks: Sequence[Pair], resamples: int, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's ρ, the mean over tasks, with a 95 % interval of the percentile bootstrap over methods.

    A method's errors are much the same at every width and task, so that these are no independent points: methods are
    drawn with replacement, each with all that belongs to it. ρ is that within a task, whose level plays no part.

    Args:
        tasks: the same methods in the same order in each.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        ρ, and the two ends of the interval. A task without spread has no ρ and is left out of a mean, a draw in which
        no task has one is left out altogether; NaN if nothing is left.
    """
    rng, count = np.random.default_rng(seed), len(tasks[0][0])
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(0, count, count)
        drawn.append(mean_rho([(x[rows], y[rows]) for x, y in tasks]))
    drawn = [rho for rho in drawn if not math.isnan(rho)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (math.nan, math.nan)
    return mean_rho(tasks), float(low), float(high)


def mean_rho(tasks: Sequence[Pair]) -> float:
    """Spearman's ρ within every task that has one, their mean; NaN if none has."""
    found = [spearman(_points(x, y)) for x, y in tasks]
    found = [rho for rho in found if not math.isnan(rho)]
    return sum(found) / len(found) if found else math.nan


def _points(x: Float[np.ndarray, "M W"], y: Float[np.ndarray, "M W"]) -> list[tuple[float, float]]:
    there = np.isfinite(x) & np.isfinite(y)
    return list(zip(x[there].tolist(), y[there].tolist(), strict=True))
