"""Proof of the digits of `constants.CONSTANTS`, by computation.

On [−R, R] by branch and bound: a box X with midpoint m is done when the enclosure f(m) + f'(X)(X − m), in
outward-rounded interval arithmetic, stays below the claimed bound, and is divided otherwise. Beyond R by an analytic
tail. A point at which an enclosure of f lies within 2e-9 below the claim shows that the claim is not too large.

Source: own derivation; the method is the mean value form of interval analysis (Moore, 1966).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkfusion.theory.constants import CONSTANTS
from ntkfusion.theory.intervals import Interval
from ntkfusion.theory.jets import REACH, derivative_on, tail

CLOSE = 2e-9
_BOXES, _PARTS, _ROUNDS = 512, 8, 14


@dataclass(frozen=True)
class ConstantProof:
    """What was shown about one constant.

    Attributes:
        activation: name of σ.
        constant: "l1", "osc", "l2" or "l3".
        claimed: the literal in the code.
        attained: a value that is attained, rounded down.
        is_bound: whether the literal was proven to be an upper bound.
        boxes: how many boxes the proof took.
    """

    activation: str
    constant: str
    claimed: float
    attained: float
    is_bound: bool
    boxes: int

    @property
    def holds(self) -> bool:
        """An upper bound, and at most 2e-9 above an attained value."""
        return self.is_bound and self.claimed - self.attained <= CLOSE


def prove_constants() -> tuple[ConstantProof, ...]:
    """Prove every finite constant anew.

    Returns:
        One `ConstantProof` per activation and constant; ReLU's, which are read off, are left out.

    >>> all(proof.holds for proof in prove_constants())
    True
    """
    return tuple(
        prove_constant(name, constant, getattr(values, constant))
        for name, values in CONSTANTS.items()
        if name != "relu"
        for constant in ("l1", "osc", "l2", "l3")
    )


def prove_constant(name: str, constant: str, claimed: float) -> ConstantProof:
    """Try to prove that `claimed` is an upper bound of a constant of an activation.

    The oscillation is bounded through σ'(h) + σ'(−h) = 1, which P(h) + P(−h) = 1 implies: inf σ' = 1 − sup σ', so
    sup σ' ≤ (claimed + 1)/2 is what there is to show.

    Args:
        name: "gelu", "gelu_tanh" or "silu".
        constant: "l1", "osc", "l2" or "l3".
        claimed: the bound to prove.

    Returns:
        What was shown; `is_bound` is False if the claim is too small or the proof was not found.
    """
    if constant == "osc":
        # rounded down: what is shown is slightly stronger
        holds, attained, boxes = _below(name, 1, float(np.nextafter((claimed + 1) / 2, 0)))
        return ConstantProof(name, constant, claimed, float(np.nextafter(2 * attained - 1, 0)), holds, boxes)
    holds, attained, boxes = _below(name, {"l1": 1, "l2": 2, "l3": 3}[constant], claimed)
    return ConstantProof(name, constant, claimed, attained, holds, boxes)


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
