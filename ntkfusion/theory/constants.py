"""Suprema of the derivatives of activations, rounded up; `constant_proof.prove_constants` proves every digit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkfusion.models.activations import get_activation


@dataclass(frozen=True)
class Constants:
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


CONSTANTS: dict[str, Constants] = {
    "relu": Constants(1.0, 1.0, math.inf, math.inf),
    "gelu": Constants(1.128904146, 1.257808291, 0.797884561, 0.778769636),
    "gelu_tanh": Constants(1.128993069, 1.257986138, 0.797884561, 0.776691451),
    "silu": Constants(1.099839321, 1.199678641, 0.500000001, 0.308181516),
}


def constants(name: str) -> Constants:
    """The constants of an activation.

    Args:
        name: a name or alias that `ntkfusion.models.activations.get_activation` knows.

    Returns:
        Its `Constants`.

    Raises:
        InputError: for an unknown name.

    >>> constants("gelu_new").l1
    1.128993069
    """
    return CONSTANTS[get_activation(name).name]
