"""A loose bound of the SGD kernel's error, from weights and the lengths of inputs alone; see `sgd_bounds`."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.theory.activations.suprema import suprema
from ntkfusion.theory.blocks.evaluation import Evaluation, KernelWeights
from ntkfusion.theory.blocks.pairs import FusedPair
from ntkfusion.theory.blocks.rounding import row_norms


def from_weights(pair: FusedPair, left: Evaluation, right: Evaluation, w: KernelWeights) -> Float[Array, "N M"]:
    """The terms with |Δ_i| ≤ X ‖δw_i‖, |ã_j| ≤ X ‖w̃_j‖, |g̃| ≤ L1; X = ‖x̄‖, Z = ‖z̄‖.

        values  X Z (Σ_j |Σ e_i − t_j| ‖w̃_j‖² + 2 L1 Σ_j ‖w̃_j‖ ‖Σ e_i δw_i‖ + L1² W2) + ½ L2 X Z (X + Z) W∞ W2
        slopes  L1² Σ_j |Σ d_i − s_j| + L1 L2 (X + Z) Σ_j ‖Σ d_i δw_i‖ + (½ L1 L3 (X² + Z²) + L2² X Z) Σ d_i ‖δw_i‖²

    with W2 = Σ e_i ‖δw_i‖², W∞ = max ‖w̃_j‖; the bound is values + |[b2] − [b̃2]| + X Z slopes. For V4 with means every
    term is at most a constant times the inertia. For ReLU, whose slopes jump, R̄ ≤ |Δ| and S̄ ≤ 1[δw_i ≠ 0] instead.

    Args:
        pair: the two blocks.
        left: the pair at x.
        right: the pair at z.
        w: weights of the kernel's mean over outputs.

    Returns:
        The bound of every pair, without rounding.
    """
    x = row_norms(left.at.x)[:, None] * jnp.ones((1, right.at.x.shape[0]), pair.w.dtype)
    z = row_norms(right.at.x)[None, :] * jnp.ones_like(x)
    return _values(pair, x, z, w) + jnp.abs(w.bias_gap) + x * z * _slopes(pair, x, z, w)


def _values(pair: FusedPair, x: Float[Array, "N M"], z: Float[Array, "N M"], w: KernelWeights) -> Float[Array, "N M"]:
    numbers = suprema(pair.activation)
    dw, centre = row_norms(pair.delta_w), row_norms(pair.centre_w)
    sums = row_norms(pair.to_clusters(pair.delta_w.T * w.values[None, :]).T)
    squares, largest = w.values @ dw**2, jnp.max(centre)
    known = jnp.abs(w.value_surplus(pair)) @ centre**2 + 2 * numbers.l1 * (centre @ sums) + numbers.l1**2 * squares
    if numbers.l2 == float("inf"):
        return x * z * (known + 2 * largest * (w.values @ dw))
    return x * z * (known + 0.5 * numbers.l2 * (x + z) * largest * squares)


def _slopes(pair: FusedPair, x: Float[Array, "N M"], z: Float[Array, "N M"], w: KernelWeights) -> Float[Array, "N M"]:
    numbers = suprema(pair.activation)
    squares = jnp.sum(pair.delta_w**2, axis=1)
    known = numbers.l1**2 * jnp.sum(jnp.abs(w.slope_surplus(pair)))
    if numbers.l2 == float("inf"):
        return known + 3 * jnp.sum(jnp.where(squares > 0, w.slopes, 0)) * jnp.ones_like(x)
    linear = jnp.sum(row_norms(pair.to_clusters(pair.delta_w.T * w.slopes[None, :]).T))
    curved = w.slopes @ squares
    bent = 0.5 * numbers.l1 * numbers.l3 * (x**2 + z**2) + numbers.l2**2 * x * z
    return known + numbers.l1 * numbers.l2 * (x + z) * linear + bent * curved
