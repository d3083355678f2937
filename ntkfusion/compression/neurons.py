"""A dense block as its methods see it: neurons as vectors, weights by how important they are, and what is left of both.

Scores are functions of ``(block, index, workspace)`` that give one number per weight, ``{"w1": [d, m], "w2": [m, o]}``,
each at least 0: weighted factorisations and pruning use them. What is called a row in the literature (PyTorch's layout:
one output neuron of a matrix) is a column here; `by_output` adds up its entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.compression.matrices.codecs import matrix_budgets
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock

#: One score per weight of W1 and of W2.
Scores: TypeAlias = dict[str, Array]


def neuron_vectors(block: MLPBlock) -> Float[Array, "m features"]:
    """θ_i = [w_i; b_i; v_i] of every neuron, one per row; without input biases [w_i; v_i]."""
    columns = [block.w1.T, block.w2] if block.b1 is None else [block.w1.T, block.b1[:, None], block.w2]
    return jnp.concatenate(columns, axis=1)


def block_of_neurons(vectors: Float[Array, "c features"], like: MLPBlock) -> MLPBlock:
    """The block whose neurons are the given vectors; output biases and activation are those of `like`."""
    d = like.model_width
    b1 = None if like.b1 is None else vectors[:, d]
    w2 = vectors[:, d if like.b1 is None else d + 1 :]
    return like.replace(w1=vectors[:, :d].T, b1=b1, w2=w2, q=None, r=None)


def select_neurons(block: MLPBlock, neurons: Int[Array, " c"]) -> MLPBlock:
    """The block with only the named neurons, in the given order."""
    b1 = None if block.b1 is None else block.b1[neurons]
    return block.replace(w1=block.w1[:, neurons], b1=b1, w2=block.w2[neurons], q=None, r=None)


def weight_products(block: MLPBlock) -> Float[Array, " m"]:
    """‖w_i‖ ‖v_i‖ of every neuron: how much a neuron can move the output per unit of input."""
    return jnp.linalg.norm(block.w1, axis=0) * jnp.linalg.norm(block.w2, axis=1)


def largest(scores: Float[Array, " m"], count: int) -> Int[Array, " count"]:
    """Indices of the `count` largest scores in their original order; ties go to the lower index."""
    return jnp.sort(jnp.argsort(-scores, stable=True)[:count])


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
        return {name: _task_scores(given, name, weights) for name, weights in (("w1", block.w1), ("w2", block.w2))}
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


def surviving_weights(block: MLPBlock, neurons: int) -> tuple[int, int]:
    """How many weights of W1 and of W2 survive, so that they and the biases are a dense block of `neurons` neurons.

    The biases all stay, and both matrices keep the same fraction. Masks are not counted; see `MaskedBlock`.

    Raises:
        InputError: if the biases leave no weight in one of the matrices.
    """
    first, second = matrix_budgets(block, neurons)
    if min(first, second) < 1:
        raise InputError(
            f"pruning: the {block.hidden_width} input biases leave no weight of what {neurons} dense neurons store; "
            "choose a larger width"
        )
    return first, second


def mask_of_largest(scores: Float[Array, "rows columns"], count: int) -> Float[Array, "rows columns"]:
    """1 at the `count` largest scores of a matrix, else 0; ties go to the lower index, row by row."""
    kept = largest(scores.ravel(), count)
    return jnp.zeros(scores.size, scores.dtype).at[kept].set(1).reshape(scores.shape)


def mask_per_output(scores: Float[Array, "inputs outputs"], count: int) -> Float[Array, "inputs outputs"]:
    """1 at the largest scores of every column, as many in each, `count` in all.

    What division leaves over goes to the columns whose best score that did not survive is the largest. Ties go to the
    lower index.
    """
    each, over = divmod(count, scores.shape[1])
    order = jnp.argsort(-scores, axis=0, stable=True)
    ranks = jnp.argsort(order, axis=0)
    limits = jnp.full(scores.shape[1], each)
    if over:
        best_lost = jnp.take_along_axis(scores, order[each : each + 1], axis=0)[0]
        limits = limits.at[largest(best_lost, over)].add(1)
    return (ranks < limits[None, :]).astype(scores.dtype)


def pruned_block(
    block: MLPBlock, mask1: Float[Array, "d m"], mask2: Float[Array, "m o"]
) -> tuple[MaskedBlock, dict[str, float]]:
    """The block with only the weights that the masks keep, and what they keep of each matrix.

    Returns:
        The block, zeros where weights were; and by matrix the fraction of the entries (``density1``, ``density2``) and
        of the sum of squares (``kept_squares1``, ``kept_squares2``) that survives.
    """
    w1, w2 = (jnp.where(mask > 0, w, 0) for mask, w in ((mask1, block.w1), (mask2, block.w2)))
    details = {}
    for name, mask, kept, weights in (("1", mask1, w1, block.w1), ("2", mask2, w2, block.w2)):
        details[f"density{name}"] = float(jnp.mean(mask))
        details[f"kept_squares{name}"] = fraction(jnp.sum(kept**2), jnp.sum(weights**2))
    return MaskedBlock(w1, block.b1, w2, block.b2, mask1, mask2, activation=block.activation), details


def fraction(part: Float[Array, ""], whole: Float[Array, ""]) -> float:
    """How much of the whole the part is; of nothing, all."""
    return float(part / whole) if whole > 0 else 1.0


def _task_scores(given: Mapping[str, Array], name: str, weights: Float[Array, "inputs outputs"]) -> Array:
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
