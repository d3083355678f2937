"""How far the SGD kernel of a fused block can be from that of the original, pair by pair of inputs.

With a_i = ã + g̃ Δ_i + ρ_i, g_i = g̃ + s_i and the weights of `evaluation` (e, d, t, s; a prime marks z; e_i = 1 for an
original without constants) and S_j = Σ_{i in C_j} e_i Δ_i,

    Σ_i e_i a_i a'_i − Σ_j t_j ã_j ã'_j = Σ_j (Σ_i e_i − t_j) ã_j ã'_j + ã_j g̃'_j S'_j + g̃_j S_j ã'_j         exact
                                        + Σ_i e_i (ã ρ'_i + ρ_i ã' + (a_i − ã)(a'_i − ã'))                    rest
    Σ_i d_i g_i g'_i − Σ_j s_j g̃_j g̃'_j = Σ_j (Σ_i d_i − s_j) g̃_j g̃'_j                                       exact
                                        + Σ_i d_i (s_i g̃' + g̃ s'_i + s_i s'_i)                                rest

and at second order s_i = σ''(h̃) Δ_i + t_i moves Σ_j σ''(h̃_j) (Σ_i d_i Δ_i) g̃'_j and its mirror to the exact terms. The
bound is |exact terms, with signs| + sizes of the rest (`scalar_bound`); beside it one of the o×o matrix's Frobenius
norm (`frobenius_bound`), and a loose one from weights and the lengths of inputs alone (`sgd_from_weights`).

Source: own derivation, docs/theory.md, Theorem 3 (b), here for arbitrary centres and constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.blocks.evaluation import (
    Evaluation,
    KernelWeights,
    PairConstants,
    constants_of,
    evaluate,
    output_weights,
    traced_weights,
    weighted_shift,
)
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.rounding import known_or_infinite, row_norms, sgd_allowance
from ntkfusion.theory.blocks.sgd_from_weights import from_weights

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

    K is what `block_kernel` returns: by default the mean over outputs, (1/o) tr. Either block may have constants, which
    are part of its kernel: of the fused block those of V4 give the small bounds, for others the exactly known
    difference is part of it. Beyond float64's range (weights or inputs of 1e±60) it is +∞, never NaN.

    Forms: "first" and "second" order of the module, "tight" the smaller of both, "cheap" the same with Cauchy–Schwarz
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
    constants = constants_of(original, fused)
    if not trace:
        return _frobenius_program(pair, left, right, constants)
    return _program(pair, left, right, constants, SGD_TERMS, form, diagonal)


class SGDTerms(NamedTuple):
    """What the bound is made of, so that a check can hand over a wrong part; see `SGD_TERMS`.

    Every term is a function of the pair, its evaluations at x and z, and the kernel's weights; exact and mixed ones of
    slopes also of whether they are expanded to second order; products of whether Cauchy–Schwarz is applied in each
    cluster.
    """

    value_exact: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights], Float[Array, "N M"]]
    value_mixed: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights], Float[Array, "N M"]]
    value_products: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights, bool], Float[Array, "N M"]]
    slope_exact: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights, bool], Float[Array, "N M"]]
    slope_mixed: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights, bool], Float[Array, "N M"]]
    slope_products: Callable[[FusedPair, Evaluation, Evaluation, KernelWeights, bool], Float[Array, "N M"]]


def sgd_bound_of(
    pair: FusedPair,
    left: Evaluation,
    right: Evaluation,
    constants: PairConstants,
    terms: SGDTerms,
    form: SGDForm = "tight",
    diagonal: bool = False,
) -> Float[Array, "N M *o"]:
    """`sgd_kernel_bound` of an evaluated pair, rounding included, not compiled.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        constants: of both blocks.
        terms: what all forms but "weights" are made of; `SGD_TERMS`.
        form: which bound.
        diagonal: a bound for every output instead of their mean.

    Returns:
        [N, M], or [N, M, o] for the diagonal.
    """
    if not diagonal:
        return _bound(pair, left, right, traced_weights(pair, constants, "sgd"), terms, form)

    def one(columns: tuple[Float[Array, " m"], Float[Array, " c"]]) -> Float[Array, "N M"]:
        return _bound(pair, left, right, output_weights(pair, constants, "sgd", *columns), terms, form)

    # one output after the other: all at once would need [o, N, m]
    return jnp.moveaxis(jax.lax.map(one, (pair.v.T, pair.centre_v.T)), 0, -1)


def smaller_bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, terms: SGDTerms, *, cheap: bool = False
) -> Float[Array, "N M"]:
    """The smaller of both orders, pair by pair."""
    orders = [scalar_bound(pair, left, right, w, terms, second=second, cheap=cheap) for second in (False, True)]
    return jnp.minimum(*orders)


def scalar_bound(
    pair: FusedPair,
    left: Evaluation,
    right: Evaluation,
    w: KernelWeights,
    terms: SGDTerms,
    *,
    second: bool,
    cheap: bool = False,
) -> Float[Array, "N M"]:
    """|exact terms| + sizes of the others, for the scalar kernel with weights `w`; no rounding.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        w: weights of the mean over outputs, or of one output.
        terms: what the bound is made of.
        second: at which order slopes are expanded.
        cheap: Cauchy–Schwarz in each cluster.

    Returns:
        The bound of every pair.
    """
    gram = left.at.x @ right.at.x.T
    exact = terms.value_exact(pair, left, right, w) + w.bias_gap
    exact = exact + gram * terms.slope_exact(pair, left, right, w, second)
    values = terms.value_mixed(pair, left, right, w) + terms.value_products(pair, left, right, w, cheap)
    slopes = terms.slope_mixed(pair, left, right, w, second) + terms.slope_products(pair, left, right, w, cheap)
    return jnp.abs(exact) + values + jnp.abs(gram) * slopes


def scalar_allowance(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """What rounding adds to `scalar_bound`."""
    gram = jnp.abs(left.at.x) @ jnp.abs(right.at.x).T
    return sgd_allowance(left.rounding, right.rounding, gram, w.value_sizes(pair), w.slope_sizes(pair))


def frobenius_bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, constants: PairConstants
) -> Float[Array, "N M"]:
    """A bound of ‖K(x, z) − K̃(x, z)‖_F, rounding included, not compiled.

    With d_i = r_i² ‖v_i‖² (r_i of the original) and the terms of the module,

        K − K̃ = (values) I + M Σ_i (s_i g̃' + g̃ s'_i + s_i s'_i) r_i² v_i v_iᵀ
                + M Σ_j g̃_j g̃'_j (Σ_i r_i² v_i v_iᵀ − r_j² n_j² ṽ_j ṽ_jᵀ)

    so it is at most √o |values| + |M| (rest with d) + |M| Σ_j |g̃_j g̃'_j| F_j, where F_j bounds the last matrix. For
    Σ_i s_i r_i² v_i v_iᵀ the smaller of Σ_i d_i S̄_i and, with s_i = σ''(h̃) Δ_i + t_i, of Σ_i d_i S̄2_i + |σ''(h̃_j)|
    times Σ_i r_i² |Δ_i| (‖δv_i‖² + 2 ‖δv_i‖ ‖ṽ_j‖) + |Σ_i r_i² Δ_i| ‖ṽ_j‖² is taken, cluster by cluster.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        constants: of both blocks.

    Returns:
        The bound of every pair.
    """
    o = pair.v.shape[1]
    w = _summed(traced_weights(pair, constants, "sgd"), o)
    gram = left.at.x @ right.at.x.T
    values = jnp.abs(_value_exact(pair, left, right, w) + w.bias_gap)
    values = values + _value_mixed(pair, left, right, w) + _value_products(pair, left, right, w, cheap=False)
    here, there = (slope_changes(pair, side, constants) for side in (left, right))
    slopes = here @ jnp.abs(right.g).T + jnp.abs(left.g) @ there.T
    slopes = slopes + _slope_products(pair, left, right, w, cheap=False)
    slopes = slopes + (jnp.abs(left.g) * outer_gaps(pair, constants)[None, :]) @ jnp.abs(right.g).T
    sizes = jnp.abs(left.at.x) @ jnp.abs(right.at.x).T
    root = math.sqrt(o)
    allowance = sgd_allowance(
        left.rounding,
        right.rounding,
        sizes,
        root * w.value_sizes(pair),
        w.slope_sizes(pair) + _outer_sizes(pair, constants),
    )
    return known_or_infinite(root * values + jnp.abs(gram) * slopes + allowance)


def slope_changes(pair: FusedPair, side: Evaluation, constants: PairConstants) -> Float[Array, "N c"]:
    """Bounds of ‖Σ_{i in C_j} s_i r_i² v_i v_iᵀ‖_F."""
    grown = constants.original_r**2
    d, dv = grown * jnp.sum(pair.v**2, axis=1), row_norms(pair.delta_v)
    centre = row_norms(pair.centre_v)
    moved = jnp.abs(side.at.delta) * (grown * dv * (dv + 2 * centre[pair.labels]))[None, :]
    linear = pair.to_clusters(moved) + jnp.abs(weighted_shift(pair, side.at, grown)) * (centre**2)[None, :]
    second = pair.to_clusters(side.bounds.slope_second * d[None, :]) + jnp.abs(side.curve) * linear
    return jnp.minimum(pair.to_clusters(side.bounds.slope * d[None, :]), second)


def outer_gaps(pair: FusedPair, constants: PairConstants) -> Float[Array, " c"]:
    """F_j ≥ ‖Σ_i r_i² v_i v_iᵀ − r_j² n_j² ṽ_j ṽ_jᵀ‖_F.

    That is Σ r_i² ‖δv_i‖² + 2 ‖Σ r_i² δv_i‖ ‖ṽ_j‖ + |Σ r_i² − r_j² n_j²| ‖ṽ_j‖².
    """
    squared = constants.original_r**2
    squares = pair.to_clusters(squared * jnp.sum(pair.delta_v**2, axis=1))
    sums = row_norms(pair.to_clusters(pair.delta_v.T * squared[None, :]).T)
    centre = row_norms(pair.centre_v)
    grown = jnp.abs(pair.to_clusters(squared) - (constants.r * pair.counts) ** 2)
    return squares + 2 * sums * centre + grown * centre**2


def _check(form: str, trace: bool, diagonal: bool) -> None:
    if form not in get_args(SGDForm):
        raise InputError(f"unknown form {form!r} of the SGD kernel's bound; known: {', '.join(get_args(SGDForm))}")
    if diagonal and not trace:
        raise InputError("diagonal=True and trace=False exclude each other: ask for the diagonal or the Frobenius norm")
    if (not trace and form != "tight") or (diagonal and form == "weights"):
        raise InputError(f"form {form!r} is for the mean over outputs; take 'tight'")


def _bound(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, terms: SGDTerms, form: SGDForm
) -> Float[Array, "N M"]:
    if form in ("first", "second"):
        bound = scalar_bound(pair, left, right, w, terms, second=form == "second")
    elif form == "weights":
        bound = from_weights(pair, left, right, w)
    else:
        bound = smaller_bound(pair, left, right, w, terms, cheap=form == "cheap")
    return known_or_infinite(bound + scalar_allowance(pair, left, right, w))


def _value_exact(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_j (Σ_i e_i − t_j) ã_j ã'_j + ã_j g̃'_j S'_j + g̃_j S_j ã'_j."""
    surplus = (left.a * w.value_surplus(pair)[None, :]) @ right.a.T
    here, there = (side.g * weighted_shift(pair, side.at, w.values) for side in (left, right))
    return surplus + left.a @ there.T + here @ right.a.T


def _value_mixed(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_i e_i (|ã| R̄'_i + R̄_i |ã'|)."""
    here, there = (pair.to_clusters(side.bounds.remainder * w.values[None, :]) for side in (left, right))
    return jnp.abs(left.a) @ there.T + here @ jnp.abs(right.a).T


def _value_products(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, cheap: bool
) -> Float[Array, "N M"]:
    """Σ_i e_i Ē_i Ē'_i."""
    return product_sum(pair, left.bounds.value, right.bounds.value, w.values, cheap)


def _slope_exact(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, second: bool
) -> Float[Array, "N M"]:
    """Σ_j (Σ_i d_i − s_j) g̃_j g̃'_j, and at second order the terms linear in Δ."""
    zeroth = (left.g * w.slope_surplus(pair)[None, :]) @ right.g.T
    if not second:
        return zeroth
    here, there = (side.curve * weighted_shift(pair, side.at, w.slopes) for side in (left, right))
    return zeroth + here @ right.g.T + left.g @ there.T


def _slope_mixed(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, second: bool
) -> Float[Array, "N M"]:
    """Σ_i d_i (S̄_i |g̃'| + |g̃| S̄'_i), with S̄2 instead of S̄ at second order."""
    here, there = (
        pair.to_clusters((side.bounds.slope_second if second else side.bounds.slope) * w.slopes[None, :])
        for side in (left, right)
    )
    return here @ jnp.abs(right.g).T + jnp.abs(left.g) @ there.T


def _slope_products(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, cheap: bool
) -> Float[Array, "N M"]:
    """Σ_i d_i S̄_i S̄'_i."""
    return product_sum(pair, left.bounds.slope, right.bounds.slope, w.slopes, cheap)


def product_sum(
    pair: FusedPair, left: Float[Array, "N m"], right: Float[Array, "M m"], d: Float[Array, " m"], cheap: bool
) -> Float[Array, "N M"]:
    """Σ_i d_i p_i p'_i; by Cauchy–Schwarz in each cluster if `cheap`: c columns instead of m."""
    if not cheap:
        return (left * d[None, :]) @ right.T
    here, there = (jnp.sqrt(pair.to_clusters(side**2 * d[None, :])) for side in (left, right))
    return here @ there.T


def _summed(w: KernelWeights, o: int) -> KernelWeights:
    """Weights of the trace from those of the mean; the values stay, they multiply the identity."""
    return KernelWeights(w.values, w.slopes * o, w.centre_values, w.centre_slopes * o, w.bias_gap)


def _outer_sizes(pair: FusedPair, constants: PairConstants) -> Float[Array, " m"]:
    sizes = 2 * jnp.sum(pair.v**2, axis=1) + 2 * jnp.sum(pair.centre_v**2, axis=1)[pair.labels]
    return constants.original_r**2 * sizes


#: The true terms.
SGD_TERMS = SGDTerms(_value_exact, _value_mixed, _value_products, _slope_exact, _slope_mixed, _slope_products)


_program = jax.jit(sgd_bound_of, static_argnames=("terms", "form", "diagonal"))


_frobenius_program = jax.jit(frobenius_bound)
