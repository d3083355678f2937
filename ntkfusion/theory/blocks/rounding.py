"""How far float64 arithmetic can carry measured numbers and evaluated bounds from the real ones.

Standard model (Higham 2002, chapters 2 and 3): an operation has a relative error of at most u = 2⁻⁵³, a sum of n
products, in any order, one of γ_n = n u/(1 − n u) of the sum of their absolute values. Overflow, and underflow that
matters, is left out: inputs or weights beyond 1e60, or all below 1e-60, have an allowance of +∞. An
activation and its first two derivatives are evaluated within `ACTIVATION_ULPS`·u times |h| (σ) or 1 (the others), where
h is what they are given: tests/theory/blocks/test_rounding.py checks that against 60-digit arithmetic. Write

    H_i(x) = |x̄|·(|w_i| + |w̃|)      Γ = γ_T, T = 4(e + m) + 64
    κ_i    = min(Γ H_i, 2) + Γ      (ReLU: Γ + 1[|h̃_i| ≤ Γ H_i])

Preactivations, and Δ from weight differences, are off by at most Γ H_i. With |σ(h)| ≤ |h| ≤ H_i, |σ'| ≤ 2 and second
and third derivatives at most 1, every computed σ(h) and σ(h̃) is off by at most 3 Γ H_i, σ'(h), σ'(h̃) and σ''(h̃) by κ_i,
g̃ Δ by 2 Γ H_i + κ_i |Δ_i| and σ''(h̃) Δ likewise. T counts the operations of two such factors and of the sum they stand
in with room to spare, so that products of small terms are covered. Bounds and kernels are sums over neurons of products
of weights and one or two of these factors, and the allowances below are the same sums of their sizes and errors.

Source: own derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.theory.blocks.pairs import FusedPair, Residuals
from ntkfusion.utils.pytrees import pytree

UNIT = 2.0**-53

#: Errors of evaluated activations, in units of u |h| (σ) and u (σ', σ'').
ACTIVATION_ULPS = 16


def gamma(n: int) -> float:
    """γ_n = n u/(1 − n u), the relative error of n operations.

    Args:
        n: how many.

    Returns:
        γ_n in float64.

    >>> gamma(2) > 2 * UNIT
    True
    """
    return n * UNIT / (1 - n * UNIT)


@pytree
class Envelope:
    """What rounding can do at N inputs; see the module.

    Attributes:
        size: H, a bound of |h|, |h̃|, |Δ|, |a| and |ã|, [N, m].
        value: error of a, ã and g̃ Δ together, [N, m].
        slope_size: a bound of |g|, |g̃| and of |σ''(h̃) Δ| beside them, [N, m].
        slope: error of these, [N, m].
        preactivation: Γ H, error of h and h̃, [N, m].
        unit: Γ.
    """

    size: Float[Array, "N m"]
    value: Float[Array, "N m"]
    slope_size: Float[Array, "N m"]
    slope: Float[Array, "N m"]
    preactivation: Float[Array, "N m"]
    unit: Float[Array, ""]


def envelope(pair: FusedPair, residuals: Residuals) -> Envelope:
    """The envelope of a pair of blocks.

    Args:
        pair: the two blocks.
        residuals: their preactivations at N inputs.

    Returns:
        The `Envelope`.
    """
    m, e = pair.w.shape
    unit = gamma(4 * (e + m) + 64)
    size = jnp.abs(residuals.x) @ (jnp.abs(pair.w) + jnp.abs(pair.centre_w[pair.labels])).T
    lost = extreme(residuals.x, pair.w, pair.centre_w, pair.v, pair.centre_v)
    size = jnp.where(lost, jnp.inf, size)
    wrong = unit * size
    delta, h = jnp.abs(residuals.delta), pair.to_neurons(residuals.centre)
    if get_activation(pair.activation).name == "relu":
        slope = jnp.where(lost, jnp.inf, unit + ambiguous(0.0, h, wrong).astype(h.dtype))
        curved, slope_size = slope, jnp.full_like(size, 2.0)
    else:
        slope = jnp.minimum(wrong, 2.0) + unit
        curved, slope_size = slope * (1 + delta) + wrong, 2 + delta
    return Envelope(size, 3 * wrong + slope * delta, slope_size, curved, wrong, jnp.asarray(unit))


def ambiguous(point: float, h: Float[Array, "N m"], wrong: Float[Array, "N m"]) -> Bool[Array, "N m"]:
    """Where rounding decides on which side of `point` a preactivation lies; not where there is nothing to round.

    Also where it is not known at all (NaN, from an overflow).
    """
    clear = jnp.abs(h - point) > wrong * (1 + abs(point)) + abs(point) * UNIT
    return ~clear & (~(wrong <= 0) | (point != 0))


def known_or_infinite(bound: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """A bound as it is, and +∞ where an overflow left none: NaN would compare as if it were violated, or not at all."""
    return jnp.where(jnp.isnan(bound), jnp.inf, bound)


#: Arrays whose largest number is beyond this, or whose reciprocal is, are not bounded: products of up to five of them
#: stay within float64 on this side, with room for small terms.
EXTREME = 1e60


def extreme(*arrays: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether the largest number of some array is such that products leave float64; zeros are not."""
    sizes = jnp.stack([jnp.max(jnp.abs(array), initial=0) for array in arrays])
    return jnp.any(~(sizes <= EXTREME) | ((sizes > 0) & (sizes < 1 / EXTREME)))


def row_norms(rows: Float[Array, "n k"]) -> Float[Array, " n"]:
    """Euclidean norms, of any size: squares of small or large numbers leave float64 where the norm does not."""
    largest = jnp.max(jnp.abs(rows), axis=1, initial=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.linalg.norm(rows / scale[:, None], axis=1)


def output_allowance(pair: FusedPair, env: Envelope) -> Float[Array, "N o"]:
    """Added to a bound of |f_k − f̃_k|, it covers the rounding of bound and outputs, per output.

    Args:
        pair: the two blocks.
        env: their envelope.

    Returns:
        Σ_i (|v_ik| + |ṽ_ik|) (value error + Γ H_i) + Γ (|b2_k| + |b̃2_k|).
    """
    v = jnp.abs(pair.v) + jnp.abs(pair.centre_v[pair.labels])
    biases = jnp.abs(pair.b2) + jnp.abs(pair.centre_b2)
    return (env.value + env.unit * env.size) @ v + env.unit * biases[None, :]


def sgd_allowance(
    left: Envelope,
    right: Envelope,
    gram: Float[Array, "N M"],
    values: Float[Array, " m"],
    slopes: Float[Array, " m"],
) -> Float[Array, "N M"]:
    """Added to a bound of an SGD kernel's error, it covers the rounding of bound and kernels.

    Args:
        left: the envelope at x.
        right: the envelope at z.
        gram: |x̄|·|z̄|.
        values: what products of activations of each neuron are weighed with, at most.
        slopes: the same for products of slopes.

    Returns:
        The allowance of every pair.
    """
    size = values[None, :] * left.size
    value = (values[None, :] * left.value) @ right.size.T + size @ (right.value + left.unit * right.size).T
    whole = slopes[None, :] * left.slope_size
    slope = (slopes[None, :] * left.slope) @ right.slope_size.T
    slope = slope + whole @ (right.slope + left.unit * right.slope_size).T
    return value + gram * slope + left.unit


def sign_allowance(
    left: Envelope,
    values: Float[Array, " m"],
    slopes: Float[Array, " m"],
    gram: Float[Array, "N M"],
    unclear_values: Float[Array, "M m"],
    unclear_slopes: Float[Array, "M m"],
) -> Float[Array, "N M"]:
    """Added to a bound of a sign kernel's error, it covers the rounding of bound and kernels.

    Args:
        left: the envelope at x.
        values: what an activation times a sign is weighed with, at most.
        slopes: the same for a slope times a sign.
        gram: |x̄|·|sgn z̄|.
        unclear_values: 1 where rounding decides sgn ã at z, else 0.
        unclear_slopes: the same for sgn g̃.

    Returns:
        The allowance of every pair.
    """
    signs = jnp.ones_like(unclear_values)
    size, whole = values[None, :] * left.size, slopes[None, :] * left.slope_size
    value = (values[None, :] * left.value + left.unit * size) @ signs.T + size @ (2 * unclear_values).T
    slope = (slopes[None, :] * left.slope + left.unit * whole) @ signs.T + whole @ (2 * unclear_slopes).T
    return value + gram * slope + left.unit
