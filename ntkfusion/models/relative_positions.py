"""Relative positions in buckets (Raffel et al. 2020, T5): near ones exactly, far ones by the logarithm."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int


def buckets(
    queries: int, keys: int, *, both_directions: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "q k"]:
    """The bucket of every pair of positions.

    With n buckets for a direction and e = ⌊n/2⌋, distance t < e has bucket t, and a larger one
    ``e + ⌊ln(t/e) / ln(max_distance/e) · (n − e)⌋``, at most n − 1.

    Args:
        queries: number of positions that attend.
        keys: number of positions that are attended to.
        both_directions: whether half of the buckets are for keys behind the query (an encoder); otherwise those share
            bucket 0 with the query's own position.
        num_buckets: how many there are in all.
        max_distance: from this distance on, everything is in the last bucket.

    Returns:
        Whole numbers from 0 to `num_buckets` − 1.

    >>> buckets(1, 4, both_directions=True, num_buckets=8, max_distance=4)
    array([[0, 5, 6, 7]])
    """
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    per_direction = num_buckets // 2 if both_directions else num_buckets
    first = per_direction * (ahead > 0) if both_directions else np.zeros_like(ahead)
    distance = np.abs(ahead) if both_directions else np.maximum(-ahead, 0)
    exact = per_direction // 2
    # float32, as the models were trained: a rounding more or less moves a distance to another bucket
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(per_direction - exact)
    far = np.minimum(exact + steps.astype(np.int64), per_direction - 1)
    return first + np.where(distance < exact, distance, far)
