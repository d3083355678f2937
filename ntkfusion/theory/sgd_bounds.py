"""How far the SGD kernel of a fused block can be from that of the original, pair by pair of inputs."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.mlp import MLPBlock
from ntkfusion.theory import sgd_terms as terms
from ntkfusion.theory.evaluation import Evaluation, evaluate
from ntkfusion.theory.kernel_weights import FusedConstants, KernelWeights, constants_of, output_weights, traced_weights
from ntkfusion.theory.pairs import FusedPair, pair_blocks
from ntkfusion.theory.rounding import sgd_allowance
from ntkfusion.theory.sgd_frobenius import frobenius_bound
from ntkfusion.theory.sgd_weights_only import from_weights

SGDForm = Literal["tight", "first", "second", "cheap", "weights"]


def sgd_kernel_bound(
    original: MLPBlock,
    fused: MLPBlock,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    labels: Int[Array, " m"] | None = None,
    *,
    form: SGDForm = "tight",
    trace: bool = True,
    diagonal: bool = False,
) -> Float[Array, "N M *o"]:
    """A proven bound of |K(x, z) − K̃(x, z)| for every pair, rounding of both kernels in float64 included.

    K is what `ntkfusion.kernels.block.block_kernel` returns: by default the mean over outputs, (1/o) tr. Any constants
    of the fused block: those of V4 give the small bounds, for others the exactly known difference is part of it.

    Forms: "first" and "second" order of `sgd_terms`, "tight" the smaller of both, "cheap" the same with Cauchy–Schwarz
    in each cluster (c instead of m columns), "weights" from ‖x̄‖, ‖z̄‖ and weights alone.

    Args:
        original: a dense block in float64.
        fused: what its neurons were fused to.
        x: evaluated inputs in float64.
        z: training inputs; by default `x`.
        labels: the cluster of every neuron; by default the centre with the nearest input weights.
        form: which bound.
        trace: the mean over outputs; if False a bound of the Frobenius norm of each pair's o×o matrix.
        diagonal: a bound of |K_kk − K̃_kk| for every output k instead of their mean.

    Returns:
        [N, M], or [N, M, o] for the diagonal.

    Raises:
        InputError: as `pair_blocks`, for inputs that do not fit or are not in float64, an unknown form, or a form that
            does not exist for trace=False (only "tight") or diagonal=True (not "weights").

    >>> import jax, jax.numpy as jnp
    >>> with jax.enable_x64(True):
    ...     block = MLPBlock(jnp.ones((2, 4)), None, jnp.ones((4, 1)), None, activation="silu")
    ...     two, half = jnp.full(1, 2.0), jnp.full(1, 0.5)
    ...     v4 = MLPBlock(jnp.full((2, 1), 2.0), None, jnp.full((1, 1), 2.0), None, q=two, r=half, activation="silu")
    ...     float(sgd_kernel_bound(block, v4, jnp.ones((1, 2)))[0, 0]) < 1e-10
    True
    """
    _check(form, trace, diagonal)
    pair = pair_blocks(original, fused, labels)
    left = evaluate(pair, x)
    right = left if z is None else evaluate(pair, z)
    fixed = constants_of(original, fused)
    if not trace:
        return frobenius_bound(pair, left, right, fixed)
    return sgd_bound_of(pair, left, right, fixed, form, diagonal)


@partial(jax.jit, static_argnums=(4, 5))
def sgd_bound_of(
    pair: FusedPair,
    left: Evaluation,
    right: Evaluation,
    fixed: FusedConstants,
    form: SGDForm = "tight",
    diagonal: bool = False,
) -> Float[Array, "N M *o"]:
    """`sgd_kernel_bound` of an evaluated pair whose fused block has the constants `fixed`, rounding included."""
    if not diagonal:
        return _bound(pair, left, right, traced_weights(pair, fixed, "sgd"), form)

    def one(columns: tuple[Float[Array, " m"], Float[Array, " c"]]) -> Float[Array, "N M"]:
        return _bound(pair, left, right, output_weights(pair, fixed, "sgd", *columns), form)

    # one output after the other: all at once would need [o, N, m]
    return jnp.moveaxis(jax.lax.map(one, (pair.v.T, pair.centre_v.T)), 0, -1)


def scalar_bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, *, second: bool, cheap: bool = False
) -> Float[Array, "N M"]:
    """|exact terms| + sizes of the others, for the scalar kernel with weights `w`; no rounding.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        w: weights of the mean over outputs, or of one output.
        second: at which order slopes are expanded.
        cheap: Cauchy–Schwarz in each cluster.

    Returns:
        The bound of every pair.
    """
    gram = left.at.x @ right.at.x.T
    exact = terms.value_exact(pair, left, right, w) + w.bias_gap
    exact = exact + gram * terms.slope_exact(pair, left, right, w, second)
    values = terms.value_mixed(pair, left, right) + terms.value_products(pair, left, right, cheap)
    slopes = terms.slope_mixed(pair, left, right, w, second) + terms.slope_products(pair, left, right, w, cheap)
    return jnp.abs(exact) + values + jnp.abs(gram) * slopes


def smaller_bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, *, cheap: bool = False
) -> Float[Array, "N M"]:
    """The smaller of both orders, pair by pair."""
    orders = [scalar_bound(pair, left, right, w, second=second, cheap=cheap) for second in (False, True)]
    return jnp.minimum(*orders)


def scalar_allowance(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """What rounding adds to `scalar_bound`."""
    gram = jnp.abs(left.at.x) @ jnp.abs(right.at.x).T
    return sgd_allowance(left.rounding, right.rounding, gram, w.value_sizes(pair), w.slope_sizes(pair))


def _bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, form: SGDForm
) -> Float[Array, "N M"]:
    if form in ("first", "second"):
        bound = scalar_bound(pair, left, right, w, second=form == "second")
    elif form == "weights":
        bound = from_weights(pair, left, right, w)
    else:
        bound = smaller_bound(pair, left, right, w, cheap=form == "cheap")
    return bound + scalar_allowance(pair, left, right, w)


def _check(form: str, trace: bool, diagonal: bool) -> None:
    if form not in get_args(SGDForm):
        raise InputError(f"unknown form {form!r} of the SGD kernel's bound; known: {', '.join(get_args(SGDForm))}")
    if diagonal and not trace:
        raise InputError("diagonal=True and trace=False exclude each other: ask for the diagonal or the Frobenius norm")
    if (not trace and form != "tight") or (diagonal and form == "weights"):
        raise InputError(f"form {form!r} is for the mean over outputs; take 'tight'")
