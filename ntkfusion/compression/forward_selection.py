"""Forward selection of neurons: one after the other, the one whose addition explains most of the block's output."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError

#: Added to the diagonal of the Gram matrix, in units of its mean: what tokens do not determine is not chased.
DAMPING = 1e-4


def forward_selection(
    hidden: Float[Array, "N m"], output_weights: Float[Array, "m o"], count: int
) -> Int[Array, " count"]:
    """The neurons with which output weights can be refitted best, chosen greedily.

    Of the neurons not chosen yet, each step takes the one that lowers min_W ‖A V − A_S W‖² most, S being the chosen
    ones and W refitted every time ("orthogonal least squares", Chen, Billings & Luo 1989). With C = AᵀA and B = C V the
    gain of neuron i is ‖B_i‖² / C_ii, and after choosing j both lose a rank-one part, so a step costs O(m (m + o)).

    Args:
        hidden: A, activations on calibration tokens.
        output_weights: V, the original's.
        count: how many neurons.

    Returns:
        Their indices, ascending. Ties go to the lower index.

    Raises:
        InputError: if `count` is not from 1 to m.

    >>> import jax.numpy as jnp
    >>> forward_selection(jnp.eye(3), jnp.array([[1.0], [3.0], [2.0]]), 2)
    Array([1, 2], dtype=int32)
    """
    if not 1 <= count <= hidden.shape[1]:
        raise InputError(f"count must be from 1 to the number of neurons, {hidden.shape[1]}; got {count}")
    with jax.default_matmul_precision("highest"):
        return jnp.sort(_select(hidden, output_weights, count))


@partial(jax.jit, static_argnames="count")
def _select(hidden: Float[Array, "N m"], output_weights: Float[Array, "m o"], count: int) -> Int[Array, " count"]:
    gram = hidden.T @ hidden
    m, unit = gram.shape[0], jnp.trace(gram) / gram.shape[0]
    gram = gram + DAMPING * unit * jnp.eye(m, dtype=gram.dtype)
    least = 1e-6 * jnp.diag(gram)

    def step(index: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gram, products, chosen = state
        left = jnp.diag(gram)
        taken = jnp.zeros(m, bool).at[chosen].set(True, mode="drop")
        gains = jnp.sum(products**2, axis=1) / jnp.maximum(left, least)
        best = jnp.argmax(jnp.where(taken, -1.0, gains))
        root = jnp.sqrt(jnp.maximum(left[best], least[best]))
        column, row = gram[:, best] / root, products[best] / root
        gram = gram - column[:, None] * column[None, :]
        products = products - column[:, None] * row[None, :]
        return gram, products, chosen.at[index].set(best.astype(jnp.int32))

    nobody = jnp.full(count, m, jnp.int32)
    return jax.lax.fori_loop(0, count, step, (gram, gram @ output_weights, nobody))[2]
