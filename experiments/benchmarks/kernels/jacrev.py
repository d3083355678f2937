"""The kernel of a network from dense Jacobians by `jax.jacrev`, in pieces that fit: what one would write by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ntkfusion.kernels.oracles.dense_jacobian import Function

#: Examples that are differentiated side by side: enough for good products, few enough for their intermediates.
TOGETHER = 8


def jacrev_kernel(f: Function, params: PyTree, x: PyTree, by: str, budget: int) -> Callable[[], jax.Array]:
    """Prepare the SGD kernel of ``f(params, example) -> [C]`` for all parameters.

    Args:
        f: the function.
        params: its parameters.
        x: examples, along the first axis of every array.
        by: "examples": all parameters at once, chunk of examples against chunk, the Jacobian of one side computed
            again and again; "parameters": as many parameters at a time as fit for all examples, one backward pass
            each (a parameter that is too large alone goes by examples).
        budget: bytes of Jacobians that may exist at a time.

    Returns:
        A call that computes [N, N, C, C].
    """
    leaves, treedef = jax.tree.flatten(params)
    n = jax.tree.leaves(x)[0].shape[0]
    outputs = jax.eval_shape(f, params, jax.tree.map(lambda array: array[0], x)).shape[0]
    sizes = [outputs * leaf.size * leaf.dtype.itemsize for leaf in leaves]
    groups = [list(range(len(leaves)))] if by == "examples" else _groups(sizes, budget // n)
    steps = [_step(f, partial(jax.tree.unflatten, treedef), group) for group in groups]
    counts = [_count(n, sum(sizes[leaf] for leaf in group), budget) for group in groups]

    def kernel() -> jax.Array:
        total = jnp.zeros((n, n, outputs, outputs), leaves[0].dtype)
        for group, step, count in zip(groups, steps, counts, strict=True):
            chosen = [leaves[leaf] for leaf in group]
            for rows in range(0, n, count):
                left = step(chosen, leaves, _some(x, rows, count))
                for columns in range(0, rows + 1, count):
                    right = left if columns == rows else step(chosen, leaves, _some(x, columns, count))
                    tile = jax.block_until_ready(_contract(left, right))
                    total = total.at[rows : rows + count, columns : columns + count].add(tile)
                    if columns != rows:
                        mirrored = tile.transpose(1, 0, 3, 2)
                        total = total.at[columns : columns + count, rows : rows + count].add(mirrored)
        return total

    return kernel


def _groups(sizes: list[int], most: int) -> list[list[int]]:
    """Neighbours that together stay below `most`."""
    groups: list[list[int]] = [[]]
    for leaf, size in enumerate(sizes):
        if groups[-1] and sum(sizes[other] for other in groups[-1]) + size > most:
            groups.append([])
        groups[-1].append(leaf)
    return groups


def _count(n: int, per_example: int, budget: int) -> int:
    """Examples per chunk, a divisor of n: all if one Jacobian of all fits, else what fits twice."""
    if n * per_example <= budget:
        return n
    return max(
        count for count in range(1, n + 1) if n % count == 0 and (2 * count * per_example <= budget or count == 1)
    )


def _some(x: PyTree, start: int, count: int) -> PyTree:
    return jax.tree.map(lambda array: array[start : start + count], x)


def _step(
    f: Function, unflatten: Callable[[list[jax.Array]], PyTree], group: list[int]
) -> Callable[..., list[jax.Array]]:
    """The compiled Jacobians [n, C, p] of some parameters."""

    def jacobians(chosen: list[jax.Array], leaves: list[jax.Array], examples: PyTree) -> list[jax.Array]:
        def g(some: list[jax.Array], example: PyTree) -> jax.Array:
            values = {**dict(enumerate(leaves)), **dict(zip(group, some, strict=True))}
            return f(unflatten([values[leaf] for leaf in range(len(leaves))]), example)

        found = jax.lax.map(lambda one: jax.jacrev(g)(chosen, one), examples, batch_size=TOGETHER)
        return [leaf.reshape(*leaf.shape[:2], -1) for leaf in found]

    return jax.jit(jacobians)


@jax.jit
def _contract(left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
    parts = [jnp.einsum("ncp,mdp->nmcd", a, b, precision="highest") for a, b in zip(left, right, strict=True)]
    return sum(parts[1:], parts[0])
