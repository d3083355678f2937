"""The Frobenius norm of the o×o matrix K(x, z) − K̃(x, z) of a pair of inputs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.theory import sgd_terms as terms
from ntkfusion.theory.evaluation import Evaluation
from ntkfusion.theory.kernel_weights import FusedConstants, KernelWeights, traced_weights
from ntkfusion.theory.pairs import FusedPair
from ntkfusion.theory.rounding import sgd_allowance


@jax.jit
def frobenius_bound(pair: FusedPair, left: Evaluation, right: Evaluation, fixed: FusedConstants) -> Float[Array, "N M"]:
    """A bound of ‖K(x, z) − K̃(x, z)‖_F, rounding included.

    With d_i = ‖v_i‖² and the terms of `sgd_terms`,

        K − K̃ = (values) I + M Σ_i (s_i g̃' + g̃ s'_i + s_i s'_i) v_i v_iᵀ
                + M Σ_j g̃_j g̃'_j (Σ_i v_i v_iᵀ − r_j² n_j² ṽ_j ṽ_jᵀ)

    so it is at most √o |values| + |M| (rest with d) + |M| Σ_j |g̃_j g̃'_j| F_j, where F_j bounds the last matrix. For
    Σ_i s_i v_i v_iᵀ the smaller of Σ_i d_i S̄_i and, with s_i = σ''(h̃) Δ_i + t_i, of Σ_i d_i S̄2_i + |σ''(h̃_j)| times
    Σ_i |Δ_i| (‖δv_i‖² + 2 ‖δv_i‖ ‖ṽ_j‖) + |S_j| ‖ṽ_j‖² is taken, cluster by cluster.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        fixed: constants of the fused block.

    Returns:
        The bound of every pair.
    """
    o = pair.v.shape[1]
    w = _summed(traced_weights(pair, fixed, "sgd"), o)
    gram = left.at.x @ right.at.x.T
    values = jnp.abs(terms.value_exact(pair, left, right, w) + w.bias_gap)
    values = values + terms.value_mixed(pair, left, right) + terms.value_products(pair, left, right, cheap=False)
    slopes = slope_changes(pair, left) @ jnp.abs(right.g).T + jnp.abs(left.g) @ slope_changes(pair, right).T
    slopes = slopes + terms.slope_products(pair, left, right, w, cheap=False)
    slopes = slopes + (jnp.abs(left.g) * outer_gaps(pair, fixed)[None, :]) @ jnp.abs(right.g).T
    sizes = jnp.abs(left.at.x) @ jnp.abs(right.at.x).T
    root = math.sqrt(o)
    allowance = sgd_allowance(
        left.rounding, right.rounding, sizes, root * w.value_sizes(pair), w.slope_sizes(pair) + _outer_sizes(pair)
    )
    return root * values + jnp.abs(gram) * slopes + allowance


def slope_changes(pair: FusedPair, side: Evaluation) -> Float[Array, "N c"]:
    """Bounds of ‖Σ_{i in C_j} s_i v_i v_iᵀ‖_F."""
    d, dv = jnp.sum(pair.v**2, axis=1), jnp.linalg.norm(pair.delta_v, axis=1)
    centre = jnp.linalg.norm(pair.centre_v, axis=1)
    moved = jnp.abs(side.at.delta) * (dv * (dv + 2 * centre[pair.labels]))[None, :]
    linear = pair.to_clusters(moved) + jnp.abs(side.shift) * (centre**2)[None, :]
    second = pair.to_clusters(side.bounds.slope_second * d[None, :]) + jnp.abs(side.curve) * linear
    return jnp.minimum(pair.to_clusters(side.bounds.slope * d[None, :]), second)


def outer_gaps(pair: FusedPair, fixed: FusedConstants) -> Float[Array, " c"]:
    """F_j ≥ ‖Σ_i v_i v_iᵀ − r_j² n_j² ṽ_j ṽ_jᵀ‖_F, that is Σ ‖δv_i‖² + 2 ‖Σ δv_i‖ ‖ṽ_j‖ + |n_j − r_j² n_j²| ‖ṽ_j‖²."""
    squares = pair.to_clusters(jnp.sum(pair.delta_v**2, axis=1))
    sums = jnp.linalg.norm(pair.to_clusters(pair.delta_v.T), axis=0)
    centre = jnp.linalg.norm(pair.centre_v, axis=1)
    grown = jnp.abs(pair.counts - (fixed.r * pair.counts) ** 2)
    return squares + 2 * sums * centre + grown * centre**2


def _outer_sizes(pair: FusedPair) -> Float[Array, " m"]:
    return 2 * jnp.sum(pair.v**2, axis=1) + 2 * jnp.sum(pair.centre_v**2, axis=1)[pair.labels]


def _summed(w: KernelWeights, o: int) -> KernelWeights:
    """Weights of the trace from those of the mean; the values stay, they multiply the identity."""
    return KernelWeights(w.slopes * o, w.centre_values, w.centre_slopes * o, w.bias_gap)
