"""The terms of the SGD kernel's bound: exact ones, with signs, and the sizes of what is left.

With a_i = ã + g̃ Δ_i + ρ_i, g_i = g̃ + s_i and the weights of `kernel_weights` (d, t, s; a prime marks z),

    Σ_i a_i a'_i − Σ_j t_j ã_j ã'_j  =  Σ_j (n_j − t_j) ã_j ã'_j + ã_j g̃'_j S'_j + g̃_j S_j ã'_j               exact
                                        + Σ_i ã ρ'_i + ρ_i ã' + (a_i − ã)(a'_i − ã')                          rest
    Σ_i d_i g_i g'_i − Σ_j s_j g̃_j g̃'_j = Σ_j (Σ_i d_i − s_j) g̃_j g̃'_j                                       exact
                                        + Σ_i d_i (s_i g̃' + g̃ s'_i + s_i s'_i)                                rest

and at second order s_i = σ''(h̃) Δ_i + t_i moves Σ_j σ''(h̃_j) (Σ_i d_i Δ_i) g̃'_j and its mirror to the exact terms.

Source: own derivation, methods 1.9.5 (3b), restated for arbitrary centres and constants.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.theory.evaluation import Evaluation, weighted_shift
from ntkfusion.theory.kernel_weights import KernelWeights
from ntkfusion.theory.pairs import FusedPair


def value_exact(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """Σ_j (n_j − t_j) ã_j ã'_j + ã_j g̃'_j S'_j + g̃_j S_j ã'_j."""
    surplus = (left.a * w.value_surplus(pair)[None, :]) @ right.a.T
    return surplus + left.a @ (right.g * right.shift).T + (left.g * left.shift) @ right.a.T


def value_mixed(pair: FusedPair, left: Evaluation, right: Evaluation) -> Float[Array, "N M"]:
    """Σ_i |ã| R̄'_i + R̄_i |ã'|."""
    here, there = pair.to_clusters(left.bounds.remainder), pair.to_clusters(right.bounds.remainder)
    return jnp.abs(left.a) @ there.T + here @ jnp.abs(right.a).T


def value_products(pair: FusedPair, left: Evaluation, right: Evaluation, cheap: bool) -> Float[Array, "N M"]:
    """Σ_i Ē_i Ē'_i."""
    return product_sum(pair, left.bounds.value, right.bounds.value, jnp.ones_like(pair.v[:, 0]), cheap)


def slope_exact(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, second: bool
) -> Float[Array, "N M"]:
    """Σ_j (Σ_i d_i − s_j) g̃_j g̃'_j, and at second order the terms linear in Δ."""
    zeroth = (left.g * w.slope_surplus(pair)[None, :]) @ right.g.T
    if not second:
        return zeroth
    here, there = (side.curve * weighted_shift(pair, side.at, w.slopes) for side in (left, right))
    return zeroth + here @ right.g.T + left.g @ there.T


def slope_mixed(
    pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights, second: bool
) -> Float[Array, "N M"]:
    """Σ_i d_i (S̄_i |g̃'| + |g̃| S̄'_i), with S̄2 instead of S̄ at second order."""
    here, there = (
        pair.to_clusters((side.bounds.slope_second if second else side.bounds.slope) * w.slopes[None, :])
        for side in (left, right)
    )
    return here @ jnp.abs(right.g).T + jnp.abs(left.g) @ there.T


def slope_products(
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
