"""How far the signal that a fused block sends back can be from the original's: ‖∂f/∂x − ∂f̃/∂x‖_F."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.blocks.evaluation import Evaluation, evaluate
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.rounding import known_or_infinite, row_norms


def signal_bound(
    original: MLPBlock, fused: MLPBlock, x: Float[Array, "N d"], labels: Int[Array, " m"] | None = None
) -> Float[Array, " N"]:
    """A proven bound of ‖∂f/∂x − ∂f̃/∂x‖_F for every input, rounding in float64 included.

    With g_i = g̃ + s_i, |s_i| ≤ S̄_i, and w without biases, for any centres,

        ∂f/∂x − ∂f̃/∂x = Σ_i s_i v_i w_iᵀ + Σ_j g̃_j (Σ_i δv_i δw_iᵀ + (Σ_i δv_i) w̃_jᵀ + ṽ_j (Σ_i δw_i)ᵀ)

    so it is at most Σ_i S̄_i ‖v_i‖ ‖w_i‖ + Σ_j |g̃_j| (Σ_i ‖δv_i‖ ‖δw_i‖ + ‖Σ δv_i‖ ‖w̃_j‖ + ‖ṽ_j‖ ‖Σ δw_i‖). With
    s_i = σ''(h̃) Δ_i + t_i the first sum of a cluster may be replaced by Σ_i S̄2_i ‖v_i‖ ‖w_i‖ + |σ''(h̃_j)| times
    Σ_i |Δ_i| (‖δv_i‖ ‖w_i‖ + ‖ṽ_j‖ ‖δw_i‖) + |S_j| ‖ṽ_j‖ ‖w̃_j‖; the smaller one is taken, cluster by cluster.
    Beyond float64's range (weights or inputs of 1e±60) the bound is +∞, never NaN.
    Source: own derivation, docs/theory.md, Theorem 3 (d), here for arbitrary centres.

    Args:
        original: a dense block in float64, with any constants.
        fused: what its neurons were fused to, likewise.
        x: inputs in float64.
        labels: the cluster of every neuron; by default the centre with the nearest input weights.

    Returns:
        [N]; it bounds the error of a back-propagated ∂f/∂xᵀ γ by its product with ‖γ‖, too.

    Raises:
        InputError: as `pair_blocks`, or for inputs that do not fit or are not in float64.
    """
    pair = pair_blocks(original, fused, labels)
    return _program(pair, evaluate(pair, x), SIGNAL_TERMS)


class SignalTerms(NamedTuple):
    """What the bound is made of, so that a check can hand over a wrong part; see `SIGNAL_TERMS`.

    Attributes:
        slope_part: what s_i do.
        spread_part: the difference at equal slopes.
    """

    slope_part: Callable[[FusedPair, Evaluation], Float[Array, " N"]]
    spread_part: Callable[[FusedPair, Evaluation], Float[Array, " N"]]


def signal_bound_of(pair: FusedPair, side: Evaluation, terms: SignalTerms) -> Float[Array, " N"]:
    """`signal_bound` of an evaluated pair, rounding included, not compiled."""
    bound = terms.slope_part(pair, side) + terms.spread_part(pair, side) + signal_allowance(pair, side)
    return known_or_infinite(bound)


def _slope_part(pair: FusedPair, side: Evaluation) -> Float[Array, " N"]:
    """What s_i do: per cluster the smaller of first and second order."""
    v, w, dv, dw = (
        row_norms(rows) for rows in (pair.v, _inputs(pair, pair.w), pair.delta_v, _inputs(pair, pair.delta_w))
    )
    centre_v, centre_w = row_norms(pair.centre_v), row_norms(_inputs(pair, pair.centre_w))
    moved = jnp.abs(side.at.delta) * (dv * w + centre_v[pair.labels] * dw)[None, :]
    linear = pair.to_clusters(moved) + jnp.abs(side.shift) * (centre_v * centre_w)[None, :]
    second = pair.to_clusters(side.bounds.slope_second * (v * w)[None, :]) + jnp.abs(side.curve) * linear
    first = pair.to_clusters(side.bounds.slope * (v * w)[None, :])
    return jnp.sum(jnp.minimum(first, second), axis=1)


def _spread_part(pair: FusedPair, side: Evaluation) -> Float[Array, " N"]:
    """Σ_j |g̃_j| times the size of cluster j's difference at equal slopes."""
    dv, dw = pair.delta_v, _inputs(pair, pair.delta_w)
    spread = pair.to_clusters(row_norms(dv) * row_norms(dw))
    moved = row_norms(pair.to_clusters(dv.T).T) * row_norms(_inputs(pair, pair.centre_w))
    moved = moved + row_norms(pair.centre_v) * row_norms(pair.to_clusters(dw.T).T)
    return jnp.abs(side.g) @ (spread + moved)


def signal_allowance(pair: FusedPair, side: Evaluation) -> Float[Array, " N"]:
    """What rounding adds: Σ_i (‖v_i‖ + ‖ṽ‖)(‖w_i‖ + ‖w̃‖) times the error of slopes."""
    v = row_norms(pair.v) + row_norms(pair.centre_v)[pair.labels]
    w = row_norms(_inputs(pair, pair.w)) + row_norms(_inputs(pair, pair.centre_w))[pair.labels]
    env = side.rounding
    return (env.slope + env.unit * env.slope_size) @ (v * w)


#: The true terms.
SIGNAL_TERMS = SignalTerms(_slope_part, _spread_part)


_program = jax.jit(signal_bound_of, static_argnames="terms")


def _inputs(pair: FusedPair, rows: Float[Array, "n e"]) -> Float[Array, "n d"]:
    return rows[:, :-1] if pair.has_bias else rows
