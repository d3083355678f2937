"""The slow, obvious way: dense Jacobians by automatic differentiation. What every closed form is checked against.

Use it in float64 (``jax.enable_x64``): in float32 automatic differentiation loses the signs of gradients in the tails
of an activation, which is exactly what the sign kernel counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.blocks.block import Block

#: A function of the parameters and one example.
Function: TypeAlias = Callable[[PyTree, PyTree], Array]


def block_function(block: Block) -> tuple[Function, dict[str, Array]]:
    """A block as ``f(params, x)`` and its params; the constants stay inside f."""
    return lambda params, x: block.replace(**params)(x), block.parameters()


def jacobian(f: Function, params: dict[str, PyTree], x: PyTree) -> dict[str, Float[Array, "N o p"]]:
    """∂f/∂params for each example by reverse mode, flattened per top-level entry of `params`.

    Args:
        f: ``f(params, one_example) -> [o]``.
        params: dictionary of arrays or of nested dictionaries.
        x: examples, an array or pytree of arrays with N along the first axis.

    Returns:
        {entry: [N, o, its number of parameters]}.
    """
    jac = jax.jit(jax.vmap(jax.jacrev(f), (None, 0)))(params, x)

    def flat(tree: PyTree) -> Float[Array, "N o p"]:
        return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(tree)], axis=-1)

    return {name: flat(tree) for name, tree in jac.items()}


def dense_kernel(
    f: Function,
    params: dict[str, PyTree],
    x: PyTree,
    z: PyTree = None,
    *,
    kind: Kind = "sgd",
    trace: bool = True,
    by_parameter: bool = False,
) -> Float[Array, "N M *outputs"] | dict[str, Array]:
    """The kernel of any function from its dense Jacobians. Memory: (N + M)·o·p numbers.

    Args:
        f: ``f(params, one_example) -> [o]``.
        params: dictionary of the differentiated parameters.
        x: evaluated examples, an array or pytree of arrays with N along the first axis.
        z: training examples; by default `x`.
        kind: "sgd" for ⟨∇f(x), ∇f(z)⟩, "sign" for ⟨∇f(x), sgn ∇f(z)⟩.
        trace: mean over outputs, else the full [N, M, o, o].
        by_parameter: one kernel per top-level entry of `params`.

    Returns:
        As `ntkfusion.kernels.block.block_kernel.block_kernel`.
    """
    left = jacobian(f, params, x)
    right = left if z is None else jacobian(f, params, z)
    if kind == "sign":
        right = jax.tree.map(jnp.sign, right)
    subscripts = "nop,mop->nm" if trace else "nop,mqp->nmoq"
    with jax.default_matmul_precision("highest"):
        parts = {name: jnp.einsum(subscripts, left[name], right[name]) for name in left}
    if trace:
        parts = {name: part / left[name].shape[1] for name, part in parts.items()}
    return parts if by_parameter else sum(parts.values())  # pyright: ignore[reportReturnType]
