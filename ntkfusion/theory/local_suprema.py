"""Suprema of |σ''| and |σ'''| on segments: proven bounds on small cells; the largest of the cells a segment meets."""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.theory.constants import constants
from ntkfusion.theory.intervals import Interval
from ntkfusion.theory.jets import derivative_on, tail

_WIDTH = 1 / 32
_REACH = {"gelu": 8.0, "gelu_tanh": 8.0, "silu": 20.0}
#: Segments are made longer by this much at both ends, which covers the rounding of their ends.
_MARGIN = 1e-9


@lru_cache(maxsize=16)
def _ranges(name: str, order: int) -> np.ndarray:
    """Row k, column i: the supremum over cells i to i + 2^k − 1; the first and last cell are the tails."""
    reach = _REACH[name]
    edges = np.linspace(-reach, reach, round(2 * reach / _WIDTH) + 1)
    cells = derivative_on(name, Interval(edges[:-1], edges[1:]), order).magnitude
    far = tail(name, order, reach)
    proven = {2: constants(name).l2, 3: constants(name).l3}[order]
    rows = [np.minimum(np.concatenate([[far], cells, [far]]), proven)]
    while 2 ** len(rows) <= rows[0].size:
        half, row = 2 ** (len(rows) - 1), rows[-1]
        shifted = np.concatenate([row[half:], np.zeros(half)])
        rows.append(np.maximum(row, shifted))
    return np.stack(rows)


def supremum_on(name: str, order: int, start: Float[Array, "*s"], end: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """A proven bound of sup |σ^(order)| on the segment between two points.

    Args:
        name: "gelu", "gelu_tanh" or "silu".
        order: 2 or 3.
        start: one end of each segment.
        end: the other.

    Returns:
        At most 1/32 to each side beyond the supremum on the segment, and never above L2 or L3.
    """
    ranges = _ranges(name, order)
    last = ranges.shape[1] - 1

    def cell(h: Float[Array, "*s"]) -> Array:
        return jnp.clip(jnp.floor((h + _REACH[name]) / _WIDTH) + 1, 0, last).astype(jnp.int32)

    first, final = cell(jnp.minimum(start, end) - _MARGIN), cell(jnp.maximum(start, end) + _MARGIN)
    logarithms = jnp.asarray(np.floor(np.log2(np.arange(1, last + 2))).astype(np.int32))
    level = logarithms[final - first]
    table = jnp.asarray(ranges, start.dtype)
    return jnp.maximum(table[level, first], table[level, final + 1 - (1 << level)])
