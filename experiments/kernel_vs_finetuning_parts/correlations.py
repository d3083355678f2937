"""Does a measure taken before training order the methods as the score after it does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from kernel_distance_parts.network import spearman


def bootstrap(
    groups: Sequence[tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]], resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's ρ, the mean over groups, with a 95 % interval of the percentile bootstrap.

    Points are drawn with replacement within each group, so that a task's level of scores plays no part.

    Args:
        groups: measure and score of the points of each group.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        ρ, and the two ends of the interval; draws without spread are left out.
    """
    rng = np.random.default_rng(seed)
    groups = [(np.asarray(x, float), np.asarray(y, float)) for x, y in groups]
    drawn = []
    for _ in range(resamples):
        rows = [rng.integers(0, len(x), len(x)) for x, _ in groups]
        drawn.append(_mean_rho([(x[row], y[row]) for (x, y), row in zip(groups, rows, strict=True)]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return _mean_rho(groups), float(low), float(high)


def _mean_rho(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.mean([spearman(list(zip(x, y, strict=True))) for x, y in groups]))
