"""One layer of the network bound, to first order exactly: a known direction, and a ball around it.

In front of the layer h = h̃ + D + r with a known direction D and ‖r_t‖ ≤ ρ_t, and ‖h_t − h̃_t‖ ≤ ε_t. With the Jacobians
and their norms of `layer_jacobian` and the blocks' difference b at ũ (for pre-norm O = I, no curvature of O),

    D'_t = Σ_s D_s J_ts P_t + b_t O_t
    ρ'_t = Σ_s ‖J_ts P_t‖ ρ_s + ‖P_t‖ κ^z_t + ‖(I + Df) O_t‖ κ^N_t + ‖O_t‖ κ^f_t + κ^O_t
    κ^z = curvature of attention at ε (pre-norm: at the normalised inputs, plus Σ_s ‖A_ts‖ times the curvature of LN1)
    κ^N, κ^f, κ^O: curvatures of the LayerNorm in front of the block, of f, and of the LayerNorm behind

The curvatures are quadratic in ε: small block errors are carried through as by the network itself. Behind the layer
ε' = min(‖D'‖ + ρ', Σ_s ‖J_ts P_t‖ ε_s + the same rest, the bound of `layer_step`), and D' = 0, ρ' = ε' where ρ' ≥ ε'.
Source: own derivation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.mlp import MLPBlock
from ntkfusion.theory.attention_bound import attention_curvature
from ntkfusion.theory.ball import Ball, closed
from ntkfusion.theory.block_change import block_change, block_norms
from ntkfusion.theory.block_gap import Gap
from ntkfusion.theory.layer_jacobian import LayerNorms, layer_norms
from ntkfusion.theory.layer_norm_bound import norm_curvature, normalise
from ntkfusion.theory.layer_step import FrontBound, LayerBound, back_bound, front_bound
from ntkfusion.theory.layer_weights import LayerTrace, LayerWeights, attend
from ntkfusion.theory.network_rounding import Rounding


def first_order_step(
    weights: LayerWeights,
    block: MLPBlock,
    trace: LayerTrace,
    ball: Ball,
    visible: Bool[Array, "B T T"],
    gap: Gap,
    rounding: Rounding,
) -> tuple[Ball, LayerBound]:
    """One layer.

    Args:
        weights: what both layers have around their blocks.
        block: the original MLP block, dense, without constants.
        trace: the compressed layer's trace.
        ball: what is known of h − h̃ in front of the layer.
        visible: who attends to whom.
        gap: the difference of the blocks at the trace's u.
        rounding: what float64 adds; it goes where curvatures go.

    Returns:
        What is known behind the layer, and its bounds.
    """
    front, norms = front_bound(weights, trace, ball.eps, visible, rounding), layer_norms(weights, block, trace)
    rest, bent = _front_curvature(weights, trace, ball.eps, front, norms, rounding)
    to_sum, to_input = _front_direction(weights, trace, ball.direction, visible)
    inputs = jnp.minimum(
        _weighed(norms.to_block, ball.eps), jnp.linalg.norm(to_input, axis=-1) + _weighed(norms.to_block, ball.radius)
    )
    inputs = jnp.minimum(front.inputs, inputs + norms.into * rest + bent)
    front = FrontBound(front.heads, front.seen, front.moved, front.sums, inputs)
    change = block_change(block, block_norms(block), trace.u, inputs)
    eta, apart = back_bound(weights, trace, front, change, gap, rounding)
    rest = norms.behind_sum * rest + norms.behind_norm * bent
    rest = rest + norms.out * (change.curvature + rounding.block) + rounding.hidden
    if not weights.pre_norm:
        rest = rest + norm_curvature(weights.second_norm, trace.y, eta)
    found = _behind(weights, block, trace, (to_sum, to_input), gap)
    rest = rest + (norms.out * gap.size if gap.vector is None else 0.0)
    plain = _weighed(norms.through, ball.eps) + jnp.linalg.norm(found[1], axis=-1) + rest
    ball = closed(Ball(found[0], _weighed(norms.through, ball.radius) + rest, jnp.minimum(apart, plain)))
    return ball, LayerBound(inputs, gap.size, ball.eps)


def _weighed(norms: Float[Array, "B T T"], eps: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jnp.einsum("bts,bs->bt", norms, eps)


def _front_curvature(
    weights: LayerWeights,
    trace: LayerTrace,
    eps: Float[Array, "B T"],
    front: FrontBound,
    norms: LayerNorms,
    rounding: Rounding,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """κ^z and κ^N."""
    rest = attention_curvature(front.heads, trace.attended, front.moved, front.seen) + rounding.sums
    norm = weights.first_norm
    if weights.pre_norm:
        bent = norm_curvature(norm, trace.h, eps) + rounding.seen
        passed = jnp.where(norms.attention > 0, norms.attention * bent[:, None], 0.0)
        rest, norm = rest + jnp.sum(passed, axis=-1), weights.second_norm
    return rest, norm_curvature(norm, trace.z, front.sums) + rounding.inputs


def _front_direction(
    weights: LayerWeights, trace: LayerTrace, direction: Float[Array, "B T d"], visible: Bool[Array, "B T T"]
) -> tuple[Float[Array, "B T d"], Float[Array, "B T d"]]:
    """The derivatives of z and u in the direction D."""

    def front(h: Float[Array, "B T d"]) -> tuple[Float[Array, "B T d"], Float[Array, "B T d"]]:
        x = normalise(weights.first_norm, h) if weights.pre_norm else h
        z = h + attend(weights.attention, x, visible).out
        return z, normalise(weights.second_norm if weights.pre_norm else weights.first_norm, z)

    return jax.jvp(front, (trace.h,), (direction,))[1]


def _behind(
    weights: LayerWeights,
    block: MLPBlock,
    trace: LayerTrace,
    directions: tuple[Float[Array, "B T d"], Float[Array, "B T d"]],
    gap: Gap,
) -> tuple[Float[Array, "B T d"], Float[Array, "B T d"]]:
    """D', and the part of it that is this layer's own."""
    to_sum, to_input = directions
    carried = (to_sum if weights.pre_norm else to_input) + jax.jvp(block, (trace.u,), (to_input,))[1]
    own = jnp.zeros_like(carried) if gap.vector is None else gap.vector
    if weights.pre_norm:
        return carried + own, own

    def behind(y: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        return normalise(weights.second_norm, y)

    carried, own = (jax.jvp(behind, (trace.y,), (part,))[1] for part in (carried, own))
    return carried + own, own
