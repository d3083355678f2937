"""First-order parts of a post-norm layer on a known trajectory, token by token: spectral norms of exact Jacobians.

With δ_s the change of token s (rows), the derivative of z_t = h_t + A(h)_t in the direction of δ_s is δ_s J_ts,

    J_ts = 1[t = s] (I + Σ_h scale W_Q C_t W_O) + Σ_h (p̃_ts W_V + scale p̃_ts (W_K q̃_t)(ṽ_s − c_t)ᵀ) W_O
    C_t = Σ_s p̃_ts k̃_s (ṽ_s − c_t)ᵀ

(heads not written), K_ts = J_ts DLN1(z̃_t) that of u_t, and K_ts M_t with M_t = (I + Df(ũ_t)) DLN2(ỹ_t) that of h'_t.
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
        to_block: ‖K_ts‖, [B, T, T].
        through: ‖K_ts M_t‖, [B, T, T].
        first_norm: ‖DLN1(z̃_t)‖, [B, T].
        second_norm: ‖DLN2(ỹ_t)‖.
        behind: ‖M_t‖.
    """

    to_block: Float[Array, "B T T"]
    through: Float[Array, "B T T"]
    first_norm: Float[Array, "B T"]
    second_norm: Float[Array, "B T"]
    behind: Float[Array, "B T"]


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
        first, second = (
            norm_derivative(weights.first_norm, trace.z[b, t]),
            norm_derivative(weights.second_norm, trace.y[b, t]),
        )
        identity = jnp.eye(first.shape[0], dtype=first.dtype)
        behind = (identity + block_derivative(block, trace.u[b, t])) @ second
        rows = attention_rows(weights.attention, trace, b, t)
        rows = (rows + jnp.where(jnp.arange(rows.shape[0]) == t, 1.0, 0.0)[:, None, None] * identity[None]) @ first
        own = spectral_bound(jnp.stack([first, second, behind]))
        return bounds_one_by_one(rows), bounds_one_by_one(rows @ behind), own[0], own[1], own[2]

    shape = trace.h.shape[:2]
    places = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)
    found = jax.lax.map(at, places)
    return LayerNorms(*(array.reshape(*shape, *array.shape[1:]) for array in found))


def attention_rows(weights: AttentionWeights, trace: LayerTrace, b: Array, t: Array) -> Float[Array, "T d d"]:
    """DA(x)_st for one token t: matrices for rows δ_s from the left."""
    known, scale = trace.attended, weights.scale
    p, q = known.weights[b, :, t], known.query[b, t]
    key, value = known.key[b], known.value[b]
    centred = value - jnp.einsum("hs,she->he", p, value)[None]
    by_values = jnp.einsum("hs,dhe->sdhe", p, weights.value)
    pulled = scale * jnp.einsum("hs,dhf,hf,she->sdhe", p, weights.key, q, centred)
    covariance = jnp.einsum("hs,shf,she->hfe", p, key, centred)
    own = scale * jnp.einsum("dhf,hfe->dhe", weights.query, covariance)
    here = (jnp.arange(value.shape[0]) == t).astype(own.dtype)
    inner = by_values + pulled + here[:, None, None, None] * own[None]
    return jnp.einsum("sdhe,hef->sdf", inner, weights.output)
