"""How important every weight of a block is: the scores that weighted factorisations and pruning use.

Every function takes ``(block, index, workspace)`` and gives one score per entry, ``{"w1": [d, m], "w2": [m, o]}``, each
at least 0. What is called a row in the literature (PyTorch's layout: one output neuron of a matrix) is a column here;
`by_output` adds up its entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock

Scores = dict[str, Array]


class Importance(Protocol):
    """A way to score the weights of block `index` of a run."""

    def __call__(self, block: MLPBlock, index: int, workspace: Workspace) -> Scores:
        """One score per entry of w1 and w2."""
        ...


def fisher(block: MLPBlock, index: int, workspace: Workspace) -> Scores:
    """The diagonal of the Fisher information: of a task if the run has it, else of the block's own outputs.

    With a task's mean squared gradients (`Workspace.squared_gradients`) these are the scores. Else they are the
    diagonal of the Gauss–Newton matrix of the outputs, E_x Σ_k (∂f_k/∂θ)², in closed form from calibration inputs:
    with h = W1ᵀx + b1, a = σ(h), g = σ'(h),

        W1[j, i]:  E x_j² g_i² ‖v_i‖²          W2[i, l]:  E a_i² (the same for every output l)

    Args:
        block: a dense block without constants; a task's gradients are taken to be those of these parameters.
        index: which block of the run it is.
        workspace: the run.

    Returns:
        The scores of w1 and w2.

    Raises:
        InputError: if the run has neither squared gradients nor calibration inputs, or squared gradients that are no
            squares of gradients of this block.

    >>> block = MLPBlock(jnp.array([[1.0]]), None, jnp.array([[3.0]]), None, activation="relu")
    >>> scores = fisher(block, 0, Workspace(0, [jnp.array([[2.0]])]))
    >>> scores["w1"].item(), scores["w2"].item()
    (36.0, 4.0)
    """
    given = workspace.squared_gradients(index)
    if given is not None:
        return {name: _checked(given, name, weights) for name, weights in (("w1", block.w1), ("w2", block.w2))}
    inputs = workspace.inputs(index)
    return workspace.reuse(("fisher", index), lambda: _gauss_newton_diagonal(block, inputs))


def l1(block: MLPBlock, index: int, workspace: Workspace) -> Scores:
    """Magnitudes |w|; needs no data."""
    return {"w1": jnp.abs(block.w1), "w2": jnp.abs(block.w2)}


def first_order(block: MLPBlock, index: int, workspace: Workspace) -> Scores:
    """|w| √Fisher: the root mean square change of loss or outputs, to first order, if the entry is set to 0.

    Raises:
        InputError: as `fisher`.
    """
    weights = {"w1": block.w1, "w2": block.w2}
    return {name: jnp.abs(weights[name]) * jnp.sqrt(score) for name, score in fisher(block, index, workspace).items()}


def by_output(scores: Float[Array, "inputs outputs"]) -> Float[Array, " outputs"]:
    """Σ over the entries that lead to one output: the importance of a "row" in PyTorch's layout."""
    return jnp.sum(scores, axis=0)


def _checked(given: Mapping[str, Array], name: str, weights: Float[Array, "inputs outputs"]) -> Array:
    if name not in given or given[name].shape != weights.shape:
        got = f"shape {given[name].shape}" if name in given else f"only {', '.join(given)}"
        raise InputError(
            f"squared gradients of {name} must have its shape {weights.shape}; got {got}. "
            "Take them at the block that is compressed"
        )
    if not bool(jnp.all((given[name] >= 0) & jnp.isfinite(given[name]))):
        raise InputError(f"squared gradients of {name} must be finite and at least 0")
    return given[name].astype(weights.dtype)


@jax.jit
def _gauss_newton_diagonal(block: MLPBlock, inputs: Float[Array, "N d"]) -> Scores:
    activation, h = get_activation(block.activation), block.preactivation(inputs)
    outputs = jnp.sum(block.w2**2, axis=1)
    slopes = activation.derivative(h) ** 2 * outputs[None, :] / inputs.shape[0]
    with jax.default_matmul_precision("highest"):
        w1 = (inputs**2).T @ slopes
    active = jnp.mean(activation.value(h) ** 2, axis=0)
    return {"w1": w1, "w2": jnp.broadcast_to(active[:, None], block.w2.shape)}
