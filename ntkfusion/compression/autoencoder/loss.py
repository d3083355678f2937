"""What the autoencoder minimises: mostly the direction of rows, a little of their distance."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.codes import unit_rows

#: Shares of the two terms, as in the reference.
COSINE, DISTANCE = 0.9091, 0.0909


def reconstruction_loss(
    decoded: Float[Array, "n k"], rows: Float[Array, "n k"], weights: Float[Array, " n"]
) -> Float[Array, ""]:
    """``0.9091 mean_i c_i (1 − cos(M_i, M̂_i)) + 0.0909 √(mean_ij c_i (M_ij − M̂_ij)²)``.

    Args:
        decoded: M̂.
        rows: M.
        weights: c, of mean 1 over all rows.

    Returns:
        The loss. Its second term is the root of a *batch* mean, so that batches of another size have another loss.

    >>> rows = jnp.eye(2)
    >>> round(reconstruction_loss(-rows, rows, jnp.ones(2)).item(), 4)   # 0.9091 · 2 + 0.0909 · √2
    1.9468
    """
    cosines = jnp.sum(unit_rows(decoded) * unit_rows(rows), axis=1)
    mean_square = jnp.mean(weights[:, None] * (rows - decoded) ** 2)
    # the root has no derivative at 0
    distance = jnp.sqrt(jnp.maximum(mean_square, jnp.finfo(rows.dtype).tiny))
    return COSINE * jnp.mean(weights * (1 - cosines)) + DISTANCE * distance
