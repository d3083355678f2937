"""How far the sign kernel (Adam kernel) of a fused block can be from that of the original, pair by pair of inputs.

With the weights of `evaluation`, a_i = ã + g̃ Δ_i + ρ_i, g_i = g̃ + s_i, M = x̄·sgn z̄ (a prime marks z; e_i = 1 for an
original without constants), S_j = Σ_{i in C_j} e_i Δ_i,

    K − K̃ = Σ_j (Σ_i e_i − t_j) ã_j sgn ã'_j + g̃_j S_j sgn ã'_j  +  M Σ_j (Σ_i d_i − s_j) g̃_j sgn g̃'_j          exact
            + Σ_i e_i (ρ_i sgn ã' + a_i (sgn a'_i − sgn ã'))
            + M Σ_i d_i (s_i sgn g̃' + g_i (sgn g'_i − sgn g̃'))                                                   rest

and Σ_i d_i − s_j is V1's sign-coherence defect T_j/o: 0 iff the output weights of a cluster agree in sign (if centres
are means). A sign differs only where Δ'_i carries the preactivation across the point at which it changes, and then by
at most 2 (1 for ReLU). There is no continuous modulus: an arbitrarily small Δ can do that and cost |a_i|.

Source: own derivation, docs/theory.md, Theorem 3 (c), here for arbitrary centres and constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.majorants import crosses
from ntkfusion.theory.blocks.evaluation import (
    Evaluation,
    KernelWeights,
    PairConstants,
    constants_of,
    evaluate,
    output_weights,
    slope_signs,
    traced_weights,
    value_signs,
    weighted_shift,
)
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.rounding import ambiguous, known_or_infinite, sign_allowance


def sign_kernel_bound(
    original: MLPBlock,
    fused: MLPBlock,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    labels: Int[Array, " m"] | None = None,
    *,
    diagonal: bool = False,
) -> Float[Array, "N M *o"]:
    """A proven bound of |K(x, z) − K̃(x, z)| for the sign kernel ⟨∇f(x), sgn ∇f(z)⟩, rounding in float64 included.

    K is what ``block_kernel(block, x, z, kind="sign")`` returns, with exact signs. Either block may have constants,
    which are part of its kernel: of the fused block those of V1 give the small bounds, for others the exactly known
    difference is part of it. Beyond float64's range (weights or inputs of 1e±60) it is +∞, never NaN.

    Args:
        original: a dense block in float64.
        fused: what its neurons were fused to.
        x: evaluated inputs in float64.
        z: training inputs, whose signs count; by default `x`.
        labels: the cluster of every neuron; by default the centre with the nearest input weights.
        diagonal: a bound of |K_kk − K̃_kk| for every output k instead of their mean.

    Returns:
        [N, M], or [N, M, o] for the diagonal.

    Raises:
        InputError: as `pair_blocks`, or for inputs that do not fit or are not in float64.

    >>> import jax, jax.numpy as jnp
    >>> with jax.enable_x64(True):
    ...     block = MLPBlock(jnp.ones((2, 4)), None, jnp.ones((4, 1)), None, activation="silu")
    ...     v1 = MLPBlock(jnp.ones((2, 1)), None, jnp.ones((1, 1)), None, q=jnp.full(1, 4.0), activation="silu")
    ...     float(sign_kernel_bound(block, v1, jnp.ones((1, 2)))[0, 0]) < 1e-10
    True
    """
    pair = pair_blocks(original, fused, labels)
    left = evaluate(pair, x)
    right = left if z is None else evaluate(pair, z)
    return _program(pair, left, right, constants_of(original, fused), SIGN_TERMS, diagonal)


class SignTerms(NamedTuple):
    """What the bound is made of, so that a check can hand over a wrong part; see `SIGN_TERMS`.

    Every term is a function of the pair, its evaluations at x and z, and the kernel's weights; exact and rest of slopes
    also of whether they are expanded to second order.
    """

    value_exact: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights], Float[Array, "N M"]]
    value_rest: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights], Float[Array, "N M"]]
    value_flips: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights], Float[Array, "N M"]]
    slope_exact: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights, bool], Float[Array, "N M"]]
    slope_rest: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights, bool], Float[Array, "N M"]]
    slope_flips: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights], Float[Array, "N M"]]


def sign_bound_of(
    pair: FusedPair,
    left: Evaluation,
    right: Evaluation,
    constants: PairConstants,
    terms: SignTerms,
    diagonal: bool = False,
) -> Float[Array, "N M *o"]:
    """`sign_kernel_bound` of an evaluated pair, rounding included, not compiled.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        constants: of both blocks.
        terms: what the bound is made of; `SIGN_TERMS`.
        diagonal: a bound for every output instead of their mean.

    Returns:
        [N, M], or [N, M, o] for the diagonal.
    """

    def bound(w: KernelWeights) -> Float[Array, "N M"]:
        return known_or_infinite(smaller_bound(pair, left, right, w, terms) + scalar_allowance(pair, left, right, w))

    if not diagonal:
        return bound(traced_weights(pair, constants, "sign"))
    columns = (pair.v.T, pair.centre_v.T)
    each = jax.lax.map(lambda one: bound(output_weights(pair, constants, "sign", *one)), columns)
    return jnp.moveaxis(each, 0, -1)


def smaller_bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, terms: SignTerms
) -> Float[Array, "N M"]:
    """The smaller of both orders, pair by pair."""
    return jnp.minimum(*(scalar_bound(pair, left, right, w, terms, second=second) for second in (False, True)))


def scalar_bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, terms: SignTerms, *, second: bool
) -> Float[Array, "N M"]:
    """|exact terms| + sizes of the others, for the scalar kernel with weights `w`; no rounding.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        w: weights of the mean over outputs, or of one output.
        terms: what the bound is made of.
        second: at which order slopes are expanded.

    Returns:
        The bound of every pair.
    """
    gram = left.at.x @ jnp.sign(right.at.x).T
    exact = (
        terms.value_exact(pair, left, right, w) + w.bias_gap + gram * terms.slope_exact(pair, left, right, w, second)
    )
    values = terms.value_rest(pair, left, right, w) + terms.value_flips(pair, left, right, w)
    slopes = terms.slope_rest(pair, left, right, w, second) + terms.slope_flips(pair, left, right, w)
    return jnp.abs(exact) + values + jnp.abs(gram) * slopes


def scalar_allowance(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """What rounding adds to `scalar_bound`."""
    gram = jnp.abs(left.at.x) @ jnp.abs(jnp.sign(right.at.x)).T
    h, wrong = pair.to_neurons(right.at.centre), right.rounding.preactivation
    points = (0.0, get_activation(pair.activation).derivative_zero)
    unclear = [ambiguous(point, h, wrong).astype(h.dtype) for point in points]
    return sign_allowance(left.rounding, w.value_sizes(pair), w.slope_sizes(pair), gram, *unclear)


def _value_exact(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_j ((Σ_i e_i − t_j) ã_j + g̃_j S_j) sgn ã'_j."""
    shifted = left.g * weighted_shift(pair, left.at, w.values)
    return (left.a * w.value_surplus(pair)[None, :] + shifted) @ value_signs(pair, right).T


def _value_rest(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_i e_i R̄_i |sgn ã'|."""
    return pair.to_clusters(left.bounds.remainder * w.values[None, :]) @ jnp.abs(value_signs(pair, right)).T


def _value_flips(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_i e_i (|ã| + Ē_i) Φ'_i."""
    sizes = (pair.to_neurons(jnp.abs(left.a)) + left.bounds.value) * w.values[None, :]
    return sizes @ _flips(pair, right, 0.0).T


def _slope_exact(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, second: bool
) -> Float[Array, "N M"]:
    """Σ_j (Σ_i d_i − s_j) g̃_j sgn g̃'_j, and at second order σ''(h̃_j) (Σ_i d_i Δ_i) sgn g̃'_j."""
    known = left.g * w.slope_surplus(pair)[None, :]
    if second:
        known = known + left.curve * weighted_shift(pair, left.at, w.slopes)
    return known @ slope_signs(pair, right).T


def _slope_rest(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, second: bool
) -> Float[Array, "N M"]:
    """Σ_i d_i S̄_i |sgn g̃'|, with S̄2 at second order."""
    bound = left.bounds.slope_second if second else left.bounds.slope
    return pair.to_clusters(bound * w.slopes[None, :]) @ jnp.abs(slope_signs(pair, right)).T


def _slope_flips(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_i d_i (|g̃| + S̄_i) Φ'_i."""
    sizes = (pair.to_neurons(jnp.abs(left.g)) + left.bounds.slope) * w.slopes[None, :]
    return sizes @ _flips(pair, right, get_activation(pair.activation).derivative_zero).T


def _flips(pair: FusedPair, side: Evaluation, point: float) -> Float[Array, "M m"]:
    """κ_σ 1[Δ may carry the preactivation across `point`]."""
    slack = 2 * side.rounding.preactivation + abs(point) * side.rounding.unit
    cost = 1.0 if get_activation(pair.activation).name == "relu" else 2.0
    return cost * crosses(point, pair.to_neurons(side.at.centre), side.at.delta, slack).astype(pair.w.dtype)


#: The true terms.
SIGN_TERMS = SignTerms(_value_exact, _value_rest, _value_flips, _slope_exact, _slope_rest, _slope_flips)


_program = jax.jit(sign_bound_of, static_argnames=("terms", "diagonal"))
