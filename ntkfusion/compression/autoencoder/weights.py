"""How much each row matters: the Fisher information or the sensitivity of the entries, added up over the row."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

RowImportance = Literal["none", "fisher", "l1"]


def row_weights(squared: Float[Array, "n k"], kind: RowImportance) -> Float[Array, " n"]:
    """One weight per row, of mean 1.

    Args:
        squared: mean squared gradient of every entry, [rows, entries].
        kind: "fisher" for √(Σ_j E g²); "l1" for Σ_j √(E g²), which is the sensitivity Σ_j E|g| of the reference with
            the root mean square in place of the mean magnitude.

    Returns:
        The weights; all 1 where there are no gradients at all.

    >>> row_weights(jnp.array([[9.0, 16.0], [0.0, 1.0]]), "l1").tolist()
    [1.75, 0.25]
    """
    sums = jnp.sqrt(jnp.sum(squared, axis=1)) if kind == "fisher" else jnp.sum(jnp.sqrt(squared), axis=1)
    mean = jnp.mean(sums)
    return jnp.where(mean > 0, sums / jnp.where(mean > 0, mean, 1), 1)
