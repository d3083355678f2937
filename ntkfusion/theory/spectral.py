"""Upper bounds of spectral norms from matrix products alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: How often the Gram matrix is squared; every time, the worst excess goes to its square root.
SQUARINGS = 4
_ROOM = 1 + 1e-10


def spectral_bound(a: Float[Array, "*batch n k"], squarings: int = SQUARINGS) -> Float[Array, "*batch"]:
    """At least ‖A‖₂, and at most min(n, k)^(1/2^(s+2)) times it: ‖G^(2^s)‖_F^(1/2^(s+1)) with the Gram matrix G.

    ‖G^(2^s)‖_F ≥ ‖G^(2^s)‖₂ = ‖A‖₂^(2^(s+1)). Matrices are scaled by their largest entries,
    products by their Frobenius norms, so that nothing overflows.
    A factor 1 + 1e-10 covers the rounding: each root shrinks the relative error of its power.

    Args:
        a: matrices.
        squarings: s; the excess is at most 10 % for 384 columns and s = 4.

    Returns:
        One bound for each.

    >>> import jax.numpy as jnp
    >>> bool(1 <= spectral_bound(jnp.eye(3)) < 1.02)
    True
    """
    largest = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    a = a / jnp.where(largest > 0, largest, 1)
    turned = a if a.shape[-2] <= a.shape[-1] else jnp.swapaxes(a, -1, -2)
    power = turned @ jnp.swapaxes(turned, -1, -2)
    bound = jnp.ones(a.shape[:-2], a.dtype)
    for step in range(squarings):
        power, factor = _scaled(power)
        bound = bound * factor ** (0.5 ** (step + 1))
        power = power @ power
    last = _scaled(power)[1]
    return bound * last ** (0.5 ** (squarings + 1)) * largest[..., 0, 0] * _ROOM


def _scaled(power: Float[Array, "*batch n n"]) -> tuple[Float[Array, "*batch n n"], Float[Array, "*batch"]]:
    size = jnp.linalg.norm(power, axis=(-2, -1))
    return power / jnp.where(size > 0, size, 1)[..., None, None], size


def bounds_one_by_one(matrices: Float[Array, "n d k"]) -> Float[Array, " n"]:
    """`spectral_bound` of each in turn: with little memory."""
    return jax.lax.map(spectral_bound, matrices)
