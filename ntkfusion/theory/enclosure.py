"""A number known up to a radius."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.pytree import pytree


@pytree
class Enclosure:
    """Proven limits of a measured error, rounding in float64 included.

    Attributes:
        lower: never above the error.
        upper: never below it.
    """

    lower: Float[Array, "*n"]
    upper: Float[Array, "*n"]


def kept(share: float, number: int) -> int:
    """How many of `number` directions a share of them is.

    Args:
        share: from 0 to 1.
        number: of all.

    Returns:
        The number, rounded up.

    Raises:
        InputError: for a share out of range.

    >>> kept(0.25, 10)
    3
    """
    if not 0 <= share <= 1:
        raise InputError(f"share is the exactly evaluated part, from 0 to 1; got {share}")
    return min(number, int(-(-share * number // 1)))


def orthonormality_defect(columns: Float[Array, "n k"], unit: float) -> Float[Array, ""]:
    """A bound of ‖UᵀU − I‖₂ for a computed U, rounding of the product included."""
    gram = columns.T @ columns
    return jnp.linalg.norm(gram - jnp.eye(gram.shape[0])) + 2 * unit * columns.shape[1]
