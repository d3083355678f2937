"""Suprema of the derivatives of activations: literals, a proof of every digit, and suprema on segments.

`suprema` gives literals for the whole real line, rounded up; `prove_suprema` proves them by computation. On [−R, R] by
branch and bound: a box X with midpoint m is done when the enclosure f(m) + f'(X)(X − m), in outward-rounded interval
arithmetic, stays below the claimed bound, and is divided otherwise. Beyond R by an analytic tail. A point at which an
enclosure of f lies within 2e-9 below the claim shows that the claim is not too large.

`supremum_on` bounds |σ''| and |σ'''| on segments: proven bounds on small cells, the largest of the cells that a segment
meets.

Source: own derivation; the method is the mean value form of interval analysis (Moore, 1966).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.theory.activations.intervals import REACH, Interval, derivative_on, tail


@dataclass(frozen=True)
class Suprema:
    """Upper bounds over all real numbers, at most 2e-9 above values that are attained.

    Attributes:
        l1: L1 ≥ sup |σ'|.
        osc: osc ≥ sup σ' − inf σ'.
        l2: L2 ≥ sup |σ''|; infinite if σ' jumps.
        l3: L3 ≥ sup |σ'''|; likewise.
    """

    l1: float
    osc: float
    l2: float
    l3: float


SUPREMA: dict[str, Suprema] = {
    "relu": Suprema(1.0, 1.0, math.inf, math.inf),
    "gelu": Suprema(1.128904146, 1.257808291, 0.797884561, 0.778769636),
    "gelu_tanh": Suprema(1.128993069, 1.257986138, 0.797884561, 0.776691451),
    "silu": Suprema(1.099839321, 1.199678641, 0.500000001, 0.308181516),
}


def suprema(name: str) -> Suprema:
    """The suprema of an activation's derivatives.

    Args:
        name: a name or alias that `ntkfusion.models.activations.get_activation` knows.

    Returns:
        Its `Suprema`.

    Raises:
        InputError: for an unknown name.

    >>> suprema("gelu_new").l1
    1.128993069
    """
    return SUPREMA[get_activation(name).name]


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


CLOSE = 2e-9


@dataclass(frozen=True)
class SupremumProof:
    """What was shown about one supremum.

    Attributes:
        activation: name of σ.
        which: "l1", "osc", "l2" or "l3".
        claimed: the literal in the code.
        attained: a value that is attained, rounded down.
        is_bound: whether the literal was proven to be an upper bound.
        boxes: how many boxes the proof took.
    """

    activation: str
    which: str
    claimed: float
    attained: float
    is_bound: bool
    boxes: int

    @property
    def holds(self) -> bool:
        """An upper bound, and at most 2e-9 above an attained value."""
        return self.is_bound and self.claimed - self.attained <= CLOSE


def prove_suprema() -> tuple[SupremumProof, ...]:
    """Prove every finite literal anew.

    Returns:
        One `SupremumProof` per activation and supremum; ReLU's, which are read off, are left out.

    >>> all(proof.holds for proof in prove_suprema())
    True
    """
    return tuple(
        prove_supremum(name, which, getattr(values, which))
        for name, values in SUPREMA.items()
        if name != "relu"
        for which in ("l1", "osc", "l2", "l3")
    )


def prove_supremum(name: str, which: str, claimed: float) -> SupremumProof:
    """Try to prove that `claimed` is an upper bound of one of an activation's suprema.

    The oscillation is bounded through σ'(h) + σ'(−h) = 1, which P(h) + P(−h) = 1 implies: inf σ' = 1 − sup σ', so
    sup σ' ≤ (claimed + 1)/2 is what there is to show.

    Args:
        name: "gelu", "gelu_tanh" or "silu".
        which: "l1", "osc", "l2" or "l3".
        claimed: the bound to prove.

    Returns:
        What was shown; `is_bound` is False if the claim is too small or the proof was not found.
    """
    if which == "osc":
        # rounded down: what is shown is slightly stronger
        holds, attained, boxes = _below(name, 1, float(np.nextafter((claimed + 1) / 2, 0)))
        return SupremumProof(name, which, claimed, float(np.nextafter(2 * attained - 1, 0)), holds, boxes)
    holds, attained, boxes = _below(name, {"l1": 1, "l2": 2, "l3": 3}[which], claimed)
    return SupremumProof(name, which, claimed, attained, holds, boxes)


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
    proven = {2: suprema(name).l2, 3: suprema(name).l3}[order]
    rows = [np.minimum(np.concatenate([[far], cells, [far]]), proven)]
    while 2 ** len(rows) <= rows[0].size:
        half, row = 2 ** (len(rows) - 1), rows[-1]
        shifted = np.concatenate([row[half:], np.zeros(half)])
        rows.append(np.maximum(row, shifted))
    return np.stack(rows)


_BOXES, _PARTS, _ROUNDS = 512, 8, 14


def _below(name: str, order: int, bound: float) -> tuple[bool, float, int]:
    """Whether |σ^(order)| ≤ bound was proven; the largest value seen, rounded down; the number of boxes."""
    reach = REACH[name]
    attained, count = 0.0, 0
    if (1.0 if order == 1 else 0.0) + tail(name, order, reach) > bound:
        return False, attained, count
    boxes = _split(np.array([-reach]), np.array([reach]), _BOXES)
    for _ in range(_ROUNDS):
        count += boxes.lo.size
        middle = Interval.exactly(boxes.midpoint)
        at_middle = derivative_on(name, middle, order)
        enclosure = at_middle + derivative_on(name, boxes, order + 1) * (boxes - middle)
        attained = max(attained, float(np.max(np.maximum(at_middle.lo, -at_middle.hi))))
        left = enclosure.magnitude > bound
        if attained > bound or not np.any(left):
            return attained <= bound, attained, count
        boxes = _split(boxes.lo[left], boxes.hi[left], _PARTS)
    return False, attained, count


def _split(lo: np.ndarray, hi: np.ndarray, parts: int) -> Interval:
    """Each box in equal parts that share their ends."""
    edges = np.linspace(lo, hi, parts + 1)
    return Interval(edges[:-1].ravel(), edges[1:].ravel())
