"""One layer of the network bound: from what is known of h_t − h̃_t in front of a layer to what is known behind it.

The compressed layer's trajectory is known. With b_t = f(ũ_t) − f̃(ũ_t) of the blocks at the compressed model's own
input, and every Lipschitz constant that of the original layer around the known side,

    y_t − ỹ_t = (u_t − ũ_t) + [f(u_t) − f(ũ_t)] + b_t                              (pre-norm: z in place of the first u)

The bracket is bounded by `block_change`. `layer_step` bounds every part by itself, from ε_t ≥ ‖h_t − h̃_t‖.

`first_order_step` carries a direction exactly. In front of the layer h = h̃ + D + r with a known D and ‖r_t‖ ≤ ρ_t. With
δ_s the change of token s (rows), attention changes token t by δ_s A_ts to first order,

    A_ts = 1[t = s] scale W_Q C_t W_O + (p̃_ts W_V + scale p̃_ts (W_K q̃_t)(ṽ_s − c_t)ᵀ) W_O,  summed over heads,
    C_t = Σ_s p̃_ts k̃_s (ṽ_s − c_t)ᵀ,  c_t = Σ_s p̃_ts ṽ_s

and the sum z, the block's input u and the layer's output h' by δ_s J_ts, δ_s J_ts N_t and δ_s J_ts P_t, where

    post-norm   J_ts = 1[t = s] I + A_ts             N_t = DLN1(z̃_t)   P_t = N_t (I + Df(ũ_t)) O_t   O_t = DLN2(ỹ_t)
    pre-norm    J_ts = 1[t = s] I + DLN1(h̃_s) A_ts   N_t = DLN2(z̃_t)   P_t = I + N_t Df(ũ_t)

Norms of products along a whole layer make the bound close: factors bounded apart lose at each. With them (for pre-norm
O = I, no curvature of O),

    D'_t = Σ_s D_s J_ts P_t + b_t O_t
    ρ'_t = Σ_s ‖J_ts P_t‖ ρ_s + ‖P_t‖ κ^z_t + ‖(I + Df) O_t‖ κ^N_t + ‖O_t‖ κ^f_t + κ^O_t
    κ^z = curvature of attention at ε (pre-norm: at the normalised inputs, plus Σ_s ‖A_ts‖ times the curvature of LN1)
    κ^N, κ^f, κ^O: curvatures of the LayerNorm in front of the block, of f, and of the LayerNorm behind

The curvatures are quadratic in ε: small block errors are carried through as by the network itself. Behind the layer
ε' = min(‖D'‖ + ρ', Σ_s ‖J_ts P_t‖ ε_s + the same rest, the bound of `layer_step`), and D' = 0, ρ' = ε' where ρ' ≥ ε'.
Source: own derivation, docs/theory.md, "From blocks to a network".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.networks.attention_bound import (
    HeadNorms,
    Shifts,
    attention_change,
    attention_curvature,
    attention_rows,
    head_norms,
    shifts,
)
from ntkfusion.theory.networks.block_change import (
    BlockChange,
    Gap,
    block_change,
    block_derivative,
    block_norms,
    measured_gap,
)
from ntkfusion.theory.networks.layer_norm_bound import (
    Ball,
    NormWeights,
    bounds_one_by_one,
    closed,
    norm_change,
    norm_curvature,
    norm_derivative,
    normalise,
    spectral_bound,
)
from ntkfusion.theory.networks.network_rounding import Rounding
from ntkfusion.theory.networks.network_weights import LayerTrace, LayerWeights, attend
from ntkfusion.utils.pytrees import pytree


@pytree
class LayerBound:
    """Bounds of one layer, per token.

    Attributes:
        inputs: of ‖u − ũ‖, the MLP block's inputs.
        block: ‖f(ũ) − f̃(ũ)‖ of the blocks themselves.
        hidden: of ‖h' − h̃'‖ behind the layer.
    """

    inputs: Float[Array, "B T"]
    block: Float[Array, "B T"]
    hidden: Float[Array, "B T"]


class LayerTerms(NamedTuple):
    """What a layer's bound is made of, so that a check can hand over a wrong part; see `LAYER_TERMS`.

    Attributes:
        gap: the difference of two blocks at inputs.
        direction: D' behind a layer and the part of it that is this layer's own; weights, block, trace, the directions
            of z and u, and the blocks' difference are given.
        norm_change: bounds of how far LayerNorm carries inputs apart.
        norm_curvature: bounds of what its linear part leaves.
    """

    gap: Callable[[MLPBlock, Block, Float[Array, "B T d"]], Gap]
    direction: Callable[
        [LayerWeights, MLPBlock, LayerTrace, tuple[Float[Array, "B T d"], Float[Array, "B T d"]], Gap],
        tuple[Float[Array, "B T d"], Float[Array, "B T d"]],
    ]
    norm_change: Callable[[NormWeights, Float[Array, "B T d"], Float[Array, "B T"]], Float[Array, "B T"]]
    norm_curvature: Callable[[NormWeights, Float[Array, "B T d"], Float[Array, "B T"]], Float[Array, "B T"]]


def layer_step(
    weights: LayerWeights,
    block: MLPBlock,
    trace: LayerTrace,
    eps: Float[Array, "B T"],
    visible: Bool[Array, "B T T"],
    gap: Gap,
    rounding: Rounding,
    terms: LayerTerms,
) -> LayerBound:
    """One layer, every part bounded by itself.

    Args:
        weights: what both layers have around their blocks.
        block: the original MLP block, dense, without constants.
        trace: the compressed layer's trace.
        eps: bounds of ‖h − h̃‖ in front of the layer.
        visible: who attends to whom.
        gap: the difference of the blocks at the trace's u.
        rounding: what float64 adds.
        terms: what the bound is made of.

    Returns:
        The `LayerBound`.
    """
    front = front_bound(weights, trace, eps, visible, rounding, terms)
    change = block_change(block, block_norms(block), trace.u, front.inputs)
    return LayerBound(front.inputs, gap.size, back_bound(weights, trace, front, change, gap, rounding, terms)[1])


def first_order_step(
    weights: LayerWeights,
    block: MLPBlock,
    trace: LayerTrace,
    ball: Ball,
    visible: Bool[Array, "B T T"],
    gap: Gap,
    rounding: Rounding,
    terms: LayerTerms,
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
        terms: what the bound is made of.

    Returns:
        What is known behind the layer, and its bounds.
    """
    front, norms = front_bound(weights, trace, ball.eps, visible, rounding, terms), layer_norms(weights, block, trace)
    rest, bent = _front_curvature(weights, trace, ball.eps, front, norms, rounding, terms)
    to_sum, to_input = _front_direction(weights, trace, ball.direction, visible)
    inputs = jnp.minimum(
        _weighed(norms.to_block, ball.eps), jnp.linalg.norm(to_input, axis=-1) + _weighed(norms.to_block, ball.radius)
    )
    inputs = jnp.minimum(front.inputs, inputs + norms.into * rest + bent)
    front = FrontBound(front.heads, front.seen, front.moved, front.sums, inputs)
    change = block_change(block, block_norms(block), trace.u, inputs)
    eta, apart = back_bound(weights, trace, front, change, gap, rounding, terms)
    rest = norms.behind_sum * rest + norms.behind_norm * bent
    rest = rest + norms.out * (change.curvature + rounding.block) + rounding.hidden
    if not weights.pre_norm:
        rest = rest + terms.norm_curvature(weights.second_norm, trace.y, eta)
    found = terms.direction(weights, block, trace, (to_sum, to_input), gap)
    rest = rest + (norms.out * gap.size if gap.vector is None else 0.0)
    plain = _weighed(norms.through, ball.eps) + jnp.linalg.norm(found[1], axis=-1) + rest
    ball = closed(Ball(found[0], _weighed(norms.through, ball.radius) + rest, jnp.minimum(apart, plain)))
    return ball, LayerBound(inputs, gap.size, ball.eps)


@pytree
class FrontBound:
    """Up to the MLP block's input.

    Attributes:
        heads: norms of the heads.
        seen: bounds of ‖x − x̃‖, the input of attention.
        moved: what scores and attention weights can do.
        sums: bounds of ‖z − z̃‖.
        inputs: of ‖u − ũ‖.
    """

    heads: HeadNorms
    seen: Float[Array, "B T"]
    moved: Shifts
    sums: Float[Array, "B T"]
    inputs: Float[Array, "B T"]


def front_bound(
    weights: LayerWeights,
    trace: LayerTrace,
    eps: Float[Array, "B T"],
    visible: Bool[Array, "B T T"],
    rounding: Rounding,
    terms: LayerTerms,
) -> FrontBound:
    """Attention, its residual connection and the LayerNorm in front of the block.

    Args:
        weights: what both layers have around their blocks.
        trace: the compressed layer's.
        eps: bounds of ‖h − h̃‖.
        visible: who attends to whom.
        rounding: what float64 adds.
        terms: what the bound is made of.

    Returns:
        The `FrontBound`.
    """
    heads = head_norms(weights.attention)
    seen = terms.norm_change(weights.first_norm, trace.h, eps) if weights.pre_norm else eps
    seen = seen + rounding.seen
    moved = shifts(weights.attention, heads, trace.attended, visible, seen)
    sums = eps + attention_change(heads, trace.attended, moved, seen) + rounding.sums
    norm = weights.second_norm if weights.pre_norm else weights.first_norm
    return FrontBound(heads, seen, moved, sums, terms.norm_change(norm, trace.z, sums) + rounding.inputs)


def back_bound(
    weights: LayerWeights,
    trace: LayerTrace,
    front: FrontBound,
    change: BlockChange,
    gap: Gap,
    rounding: Rounding,
    terms: LayerTerms,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The block, its residual connection and the LayerNorm behind it.

    Args:
        weights: what both layers have around their blocks.
        trace: the compressed layer's.
        front: bounds up to the block.
        change: what the original block can do.
        gap: the blocks' difference.
        rounding: what float64 adds.
        terms: what the bound is made of.

    Returns:
        Bounds of ‖y − ỹ‖ and ‖h' − h̃'‖.
    """
    base = front.sums if weights.pre_norm else front.inputs
    eta = base + change.change + gap.size + rounding.block
    if weights.pre_norm:
        return eta, eta
    return eta, terms.norm_change(weights.second_norm, trace.y, eta) + rounding.hidden


@pytree
class LayerNorms:
    """Spectral norms of first-order parts, from above.

    Attributes:
        attention: ‖A_ts‖, [B, T, T]; only where it is needed (pre-norm), else 0.
        to_block: ‖J_ts N_t‖, [B, T, T].
        through: ‖J_ts P_t‖, [B, T, T].
        into: ‖N_t‖, [B, T].
        behind_sum: ‖P_t‖, [B, T].
        behind_norm: what changes u and then h': ‖(I + Df) O_t‖, pre-norm ‖Df‖, [B, T].
        out: ‖O_t‖, pre-norm 1, [B, T].
    """

    attention: Float[Array, "B T T"]
    to_block: Float[Array, "B T T"]
    through: Float[Array, "B T T"]
    into: Float[Array, "B T"]
    behind_sum: Float[Array, "B T"]
    behind_norm: Float[Array, "B T"]
    out: Float[Array, "B T"]


def layer_norms(weights: LayerWeights, block: MLPBlock, trace: LayerTrace) -> LayerNorms:
    """The norms, one token at a time.

    Args:
        weights: what is around the block.
        block: the block whose derivative counts (the original one), without constants.
        trace: the known trajectory.

    Returns:
        The `LayerNorms`.
    """

    def at(place: Array) -> tuple[Array, ...]:
        b, t = place[0], place[1]
        rows = attention_rows(weights.attention, trace, b, t)
        if weights.pre_norm:
            attention = bounds_one_by_one(rows)
            rows = norm_derivative(weights.first_norm, trace.h[b]) @ rows
        else:
            attention = jnp.zeros(rows.shape[0], rows.dtype)
        rows = rows + _here(rows, t)[:, None, None] * _identity(rows)[None]
        into, behind, out = _factors(weights, block, trace, b, t)
        after = into @ behind + (_identity(into) if weights.pre_norm else 0.0)
        single = spectral_bound(jnp.stack([into, after, behind, out]))
        return attention, bounds_one_by_one(rows @ into), bounds_one_by_one(rows @ after), *single

    shape = trace.h.shape[:2]
    places = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)
    found = jax.lax.map(at, places)
    return LayerNorms(*(array.reshape(*shape, *array.shape[1:]) for array in found))


def _factors(
    weights: LayerWeights, block: MLPBlock, trace: LayerTrace, b: Array, t: Array
) -> tuple[Float[Array, "d d"], Float[Array, "d d"], Float[Array, "d d"]]:
    """N_t; what is behind u: (I + Df) O_t, or Df; and O_t, or I."""
    slope = block_derivative(block, trace.u[b, t])
    identity = _identity(slope)
    if weights.pre_norm:
        return norm_derivative(weights.second_norm, trace.z[b, t]), slope, identity
    out = norm_derivative(weights.second_norm, trace.y[b, t])
    return norm_derivative(weights.first_norm, trace.z[b, t]), (identity + slope) @ out, out


def _here(rows: Float[Array, "T *rest"], t: Array) -> Float[Array, " T"]:
    return (jnp.arange(rows.shape[0]) == t).astype(rows.dtype)


def _identity(like: Float[Array, "*batch d d"]) -> Float[Array, "d d"]:
    return jnp.eye(like.shape[-1], dtype=like.dtype)


def _weighed(norms: Float[Array, "B T T"], eps: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jnp.einsum("bts,bs->bt", norms, eps)


def _front_curvature(
    weights: LayerWeights,
    trace: LayerTrace,
    eps: Float[Array, "B T"],
    front: FrontBound,
    norms: LayerNorms,
    rounding: Rounding,
    terms: LayerTerms,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """κ^z and κ^N."""
    rest = attention_curvature(front.heads, trace.attended, front.moved, front.seen) + rounding.sums
    norm = weights.first_norm
    if weights.pre_norm:
        bent = terms.norm_curvature(norm, trace.h, eps) + rounding.seen
        passed = jnp.where(norms.attention > 0, norms.attention * bent[:, None], 0.0)
        rest, norm = rest + jnp.sum(passed, axis=-1), weights.second_norm
    return rest, terms.norm_curvature(norm, trace.z, front.sums) + rounding.inputs


def _front_direction(
    weights: LayerWeights, trace: LayerTrace, direction: Float[Array, "B T d"], visible: Bool[Array, "B T T"]
) -> tuple[Float[Array, "B T d"], Float[Array, "B T d"]]:
    """The derivatives of z and u in the direction D."""

    def front(h: Float[Array, "B T d"]) -> tuple[Float[Array, "B T d"], Float[Array, "B T d"]]:
        x = normalise(weights.first_norm, h) if weights.pre_norm else h
        z = h + attend(weights.attention, x, visible).out
        return z, normalise(weights.second_norm if weights.pre_norm else weights.first_norm, z)

    return jax.jvp(front, (trace.h,), (direction,))[1]


def _direction_behind(
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


#: The true terms.
LAYER_TERMS = LayerTerms(measured_gap, _direction_behind, norm_change, norm_curvature)
