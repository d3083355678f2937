"""How far self-attention can carry two inputs apart when one of them (with a tilde) and token-wise bounds are known.

With δ_s = x_s − x̃_s, ‖δ_s‖ ≤ ε_s, for one head, k̄_t = Σ_s p̃_ts k̃_s, c_t = Σ_s p̃_ts ṽ_s, scores move by
scale (q_t·k_s − q̃_t·k̃_s) and, since softmax ignores a constant for every t, effectively by τ = τ¹ + τ²,

    τ¹_ts = scale (δ_t W_Q (k̃_s − k̄_t) + δ_s W_K q̃_t)      |τ¹_ts| ≤ scale (ε_t ‖W_Q (k̃_s − k̄_t)‖ + ε_s ‖W_K q̃_t‖)
    τ²_ts = scale δ_t W_Q W_Kᵀ δ_sᵀ                          |τ²_ts| ≤ scale ε_t ε_s ‖W_Q W_Kᵀ‖

Let τ̄_ts bound |τ_ts|, Z = Σ_s p̃_ts e^{τ_ts} ∈ [Σ p̃ e^{−τ̄}, Σ p̃ e^{τ̄}]. Then p_ts = p̃_ts e^{τ_ts}/Z, and because
Σ_s p̃_ts (ṽ_s − c_t) = 0,

    Σ_s p_ts v_s − p̃_ts ṽ_s = Σ_s p_ts δ_s W_V + Σ_s p̃_ts (e^{τ_ts} − 1)/Z (ṽ_s − c_t)

Softmax:  ‖p_t − p̃_t‖₁ ≤ 2 tanh(½ max_s τ̄_ts).
Proof. For a set S of tokens with p̃(S) = a, odds change by a factor of at most e^ω, ω = max τ − min τ; the change
a e^ω/(a e^ω + 1 − a) − a is largest at a = 1/(1 + e^{ω/2}), where it is tanh(ω/4), and ω ≤ 2 max τ̄. The ℓ1 norm
is twice the largest such change. ∎

The exact linear part, A_ts of `layer_step`, is `attention_rows`. Source: own derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.theory.blocks.rounding import gamma
from ntkfusion.theory.networks.layer_norm_bound import spectral_bound
from ntkfusion.theory.networks.network_weights import Attended, AttentionWeights, LayerTrace
from ntkfusion.utils.pytrees import pytree


@pytree
class HeadNorms:
    """Spectral norms of what a head multiplies.

    Attributes:
        score: ‖W_Q W_Kᵀ‖ of every head.
        value: ‖W_V W_O‖ of every head.
        values: ‖[W_V of all heads]‖.
        output: ‖[W_O of all heads]‖.
    """

    score: Float[Array, " H"]
    value: Float[Array, " H"]
    values: Float[Array, ""]
    output: Float[Array, ""]


def head_norms(weights: AttentionWeights) -> HeadNorms:
    """The norms of a layer's heads, from above."""
    d = weights.query.shape[0]
    return HeadNorms(
        score=spectral_bound(jnp.einsum("dhe,fhe->hdf", weights.query, weights.key)),
        value=spectral_bound(jnp.einsum("dhe,hef->hdf", weights.value, weights.output)),
        values=spectral_bound(weights.value.reshape(d, -1)),
        output=spectral_bound(weights.output.reshape(-1, d)),
    )


@pytree
class Shifts:
    """What scores and weights can do.

    Attributes:
        first: bound of |τ¹|, [B, H, T, T].
        second: of |τ²|.
        whole: τ̄, their sum.
        least: lower bound of Z, [B, H, T].
        most: upper bound of Z.
        weight: bound of |p − p̃|, [B, H, T, T].
        spread: ‖(ṽ_s − c_t) W_O‖, [B, H, T, T].
    """

    first: Float[Array, "B H T T"]
    second: Float[Array, "B H T T"]
    whole: Float[Array, "B H T T"]
    least: Float[Array, "B H T"]
    most: Float[Array, "B H T"]
    weight: Float[Array, "B H T T"]
    spread: Float[Array, "B H T T"]


def shifts(
    weights: AttentionWeights,
    norms: HeadNorms,
    known: Attended,
    visible: Bool[Array, "B T T"],
    eps: Float[Array, "B T"],
) -> Shifts:
    """Everything about scores and attention weights; 0 where a token is not visible."""
    p, seen = known.weights, visible[:, None]
    mean_key = jnp.einsum("bhts,bshe->bthe", p, known.key)
    keys = known.key[:, None] - mean_key[:, :, None]
    by_query = lengths(keys, weights.query)
    by_key = jnp.linalg.norm(jnp.einsum("dhe,bthe->bthd", weights.key, known.query), axis=-1).transpose(0, 2, 1)
    mine, theirs = eps[:, None, :, None], eps[:, None, None, :]
    first = weights.scale * (mine * by_query + theirs * by_key[..., None])
    second = weights.scale * mine * theirs * norms.score[None, :, None, None]
    first, second = (jnp.where(seen, shift, 0.0) for shift in (first, second))
    whole = first + second
    grown = jnp.exp(jnp.minimum(whole, _LARGEST_SHIFT))
    least, most = jnp.sum(p / grown, axis=-1), jnp.sum(p * grown, axis=-1)
    total = jnp.tanh(0.5 * jnp.max(whole, axis=-1))[..., None]
    up, down = p * (grown / least[..., None] - 1), p * (1 - 1 / (grown * most[..., None]))
    # one clipped shift anywhere makes `least` too large
    moderate = jnp.max(whole, axis=-1, keepdims=True) < _LARGEST_SHIFT
    up = jnp.where(moderate, jnp.maximum(up, down), jnp.inf)
    centred = known.value[:, None] - jnp.einsum("bhts,bshe->bthe", p, known.value)[:, :, None]
    spread = lengths(centred, weights.output.transpose(2, 0, 1))
    weight = jnp.where(seen, jnp.minimum(up, total), 0.0)
    return Shifts(first, second, whole, least, most, weight, jnp.where(seen, spread, 0.0))


def attention_change(norms: HeadNorms, known: Attended, moved: Shifts, eps: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """At least ‖A(x)_t − A(x̃)_t‖: values that move, and weights that move, each in its smaller form.

    Args:
        norms: of the heads.
        known: what attention computed at x̃.
        moved: what scores and weights can do for these ε.
        eps: ε, bounds of ‖x_s − x̃_s‖.

    Returns:
        One bound per token.
    """
    theirs = eps[:, None, None, :]
    plain = mixing_norms(norms, known.weights)
    values = jnp.sum(plain * eps[:, None, :], axis=-1)
    values = values + jnp.sum(moved.weight * theirs * norms.value[None, :, None, None], axis=(1, 3))
    largest = jnp.max(jnp.where(moved.weight + known.weights > 0, theirs, 0.0), axis=-1)
    values = jnp.minimum(values, jnp.sum(largest * norms.value[None, :, None], axis=1))
    return values + jnp.sum(_moved_weights(known, moved), axis=1)


def attention_curvature(
    norms: HeadNorms, known: Attended, moved: Shifts, eps: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """At least ‖A(x)_t − A(x̃)_t − Σ_s δ_s DA(x̃)_st‖, quadratic in ε.

    The linear part is Σ_s p̃_ts δ_s W_V + Σ_s p̃_ts τ¹_ts (ṽ_s − c_t). What is left are Σ_s (p − p̃)_ts δ_s W_V and
    Σ_s p̃_ts ((e^τ − 1)/Z − τ¹)(ṽ_s − c_t), where the bracket is at most (e^τ̄ − 1 − τ̄)/Z + τ̄ |1/Z − 1| + |τ²|.
    """
    small = jnp.minimum(moved.whole, _LARGEST_SHIFT)
    # e^s − 1 − s ≤ ½ s² eˢ, where the difference would cancel
    bent = jnp.where(small < 1e-3, 0.5 * small**2 * jnp.exp(small), jnp.expm1(small) - small)
    off = jnp.maximum(1 / moved.least - 1, 1 - 1 / moved.most)
    bracket = bent / moved.least[..., None] + small * off[..., None] + moved.second
    weights = jnp.sum(known.weights * bracket * moved.spread, axis=(1, 3))
    values = jnp.sum(moved.weight * eps[:, None, None, :] * norms.value[None, :, None, None], axis=(1, 3))
    return jnp.where(jnp.max(moved.whole, axis=(1, 3)) < _LARGEST_SHIFT, weights + values, jnp.inf)


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
    here = (jnp.arange(value.shape[0]) == t).astype(value.dtype)
    inner = by_values + pulled + here[:, None, None, None] * own[None]
    return jnp.einsum("sdhe,hef->sdf", inner, weights.output)


def mixing_norms(norms: HeadNorms, p: Float[Array, "B H T T"]) -> Float[Array, "B T T"]:
    """At least ‖Σ_h p̃^h_ts W_V^h W_O^h‖: Σ_h p̃^h ‖W_V^h W_O^h‖, or max_h p̃^h times the norms of all heads together."""
    apart = jnp.einsum("bhts,h->bts", p, norms.value)
    return jnp.minimum(apart, jnp.max(p, axis=1) * norms.values * norms.output)


def _moved_weights(known: Attended, moved: Shifts) -> Float[Array, "B H T"]:
    """Σ_s p̃ expm1(τ̄)/Z ‖(ṽ_s − c_t) W_O‖, or ½‖p − p̃‖₁ times the diameter of the values."""
    small = jnp.minimum(moved.whole, _LARGEST_SHIFT)
    near = jnp.sum(known.weights * jnp.expm1(small) * moved.spread, axis=-1) / moved.least
    near = jnp.where(jnp.max(moved.whole, axis=-1) < _LARGEST_SHIFT, near, jnp.inf)
    far = jnp.tanh(0.5 * jnp.max(moved.whole, axis=-1)) * 2 * jnp.max(moved.spread, axis=-1)
    return jnp.minimum(near, far)


def lengths(rows: Float[Array, "B T T H e"], kernel: Float[Array, "d H e"]) -> Float[Array, "B H T T"]:
    """At least ‖W rowᵀ‖ for every row and head, by Gram matrices: with little memory.

    A root magnifies rounding where a row is almost in the kernel of W: γ_{d + 2e} ‖W‖²_F ‖row‖² is added under it.
    """
    d, _, e = kernel.shape
    squares = jnp.einsum("btshe,hef,btshf->bhts", rows, jnp.einsum("dhe,dhf->hef", kernel, kernel), rows)
    sizes = jnp.einsum("btshe,btshe->bhts", rows, rows) * jnp.sum(kernel**2, axis=(0, 2))[None, :, None, None]
    return jnp.sqrt(jnp.maximum(squares, 0.0) + gamma(2 * (d + 2 * e) + 16) * sizes)


#: e^τ̄ of larger shifts says nothing: the forms without it are smaller.
_LARGEST_SHIFT = 50.0
