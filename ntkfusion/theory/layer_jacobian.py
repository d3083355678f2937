"""First-order parts of a layer on a known trajectory, token by token: spectral norms of exact Jacobians.

With δ_s the change of token s (rows), attention changes token t by δ_s A_ts to first order,

    A_ts = 1[t = s] scale W_Q C_t W_O + (p̃_ts W_V + scale p̃_ts (W_K q̃_t)(ṽ_s − c_t)ᵀ) W_O,  summed over heads,
    C_t = Σ_s p̃_ts k̃_s (ṽ_s − c_t)ᵀ,  c_t = Σ_s p̃_ts ṽ_s

and the sum z, the block's input u and the layer's output h' by δ_s J_ts, δ_s J_ts N_t and δ_s J_ts P_t, where

    post-norm   J_ts = 1[t = s] I + A_ts             N_t = DLN1(z̃_t)   P_t = N_t (I + Df(ũ_t)) O_t   O_t = DLN2(ỹ_t)
    pre-norm    J_ts = 1[t = s] I + DLN1(h̃_s) A_ts   N_t = DLN2(z̃_t)   P_t = I + N_t Df(ũ_t)

Norms of products along a whole layer are what makes the bound of a layer close: factors bounded apart lose at each.
Source: own derivation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.mlp import MLPBlock
from ntkfusion.models.pytree import pytree
from ntkfusion.theory.block_change import block_derivative
from ntkfusion.theory.layer_norm_bound import norm_derivative
from ntkfusion.theory.layer_weights import AttentionWeights, LayerTrace, LayerWeights
from ntkfusion.theory.spectral import bounds_one_by_one, spectral_bound


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


def attention_rows(weights: AttentionWeights, trace: LayerTrace, b: Array, t: Array) -> Float[Array, "T d d"]:
    """A_ts for one token t: matrices for rows δ_s from the left."""
    known, scale = trace.attended, weights.scale
    p, q = known.weights[b, :, t], known.query[b, t]
    key, value = known.key[b], known.value[b]
    centred = value - jnp.einsum("hs,she->he", p, value)[None]
    by_values = jnp.einsum("hs,dhe->sdhe", p, weights.value)
    pulled = scale * jnp.einsum("hs,dhf,hf,she->sdhe", p, weights.key, q, centred)
    covariance = jnp.einsum("hs,shf,she->hfe", p, key, centred)
    own = scale * jnp.einsum("dhf,hfe->dhe", weights.query, covariance)
    inner = by_values + pulled + _here(value, t)[:, None, None, None] * own[None]
    return jnp.einsum("sdhe,hef->sdf", inner, weights.output)


def _here(rows: Float[Array, "T *rest"], t: Array) -> Float[Array, " T"]:
    return (jnp.arange(rows.shape[0]) == t).astype(rows.dtype)


def _identity(like: Float[Array, "*batch d d"]) -> Float[Array, "d d"]:
    return jnp.eye(like.shape[-1], dtype=like.dtype)
