"""How many numbers a coded matrix may take, so that methods are compared at equal parameters."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.codes import unit_rows
from ntkfusion.models.mlp import MLPBlock


def matrix_budgets(block: MLPBlock, neurons: int) -> tuple[int, int]:
    """Numbers for W1 and for W2 that make the block no larger than a dense block of `neurons` neurons.

    The biases stay as they are and are paid first; the rest is shared in proportion to the sizes of the matrices.

    >>> matrix_budgets(MLPBlock(jnp.zeros((2, 8)), jnp.zeros(8), jnp.zeros((8, 2)), jnp.zeros(2)), 4)
    (6, 6)
    """
    d, o, m = block.model_width, block.output_width, block.hidden_width
    left = neurons * (d + o + (block.b1 is not None)) - (0 if block.b1 is None else m)
    first = left * d // (d + o)
    return first, left - first


def fidelity(decoded: Float[Array, "n k"], rows: Float[Array, "n k"]) -> dict[str, float]:
    """The mean cosine between decoded and original rows, and ‖decoded − original‖ / ‖original‖ (Frobenius)."""
    cosines = jnp.sum(unit_rows(decoded) * unit_rows(rows), axis=1)
    error = jnp.linalg.norm(decoded - rows) / jnp.maximum(jnp.linalg.norm(rows), jnp.finfo(rows.dtype).tiny)
    return {"cosine": float(jnp.mean(cosines)), "relative_error": float(error)}
