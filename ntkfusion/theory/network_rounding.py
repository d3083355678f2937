"""How far float64 arithmetic can carry the two trajectories of a network bound from the real ones, layer by layer.

Standard model, as in `rounding`: Γ = γ_n with n ≥ 4 times the sums that follow each other. With X ≥ ‖x_t‖ on both
trajectories and Frobenius norms F (‖ |x| |W| ‖ ≤ X ‖W‖_F), Q = X F_Q + ‖b_Q‖, K and V likewise, largest over tokens,

    scores    4 Γ scale Q K =: s                weights   π = e^{2s} − 1 + Γ, relative
    attention Σ_h F_O V (3Γ + π) + Γ ‖b_O‖ + Γ ‖h‖
    block     6 Γ F_V (‖u‖ F_W + ‖b1‖) + Γ ‖b2‖ (|σ(h)| ≤ |h|, σ' ≤ 1.3; a wrong preactivation is a shifted bias)
    LayerNorm 2 Γ ‖z‖ √d max|γ|/‖z⁺‖ + Γ (√d max|γ| + ‖β‖)

each for two trajectories; the derivatives that carry a direction D add the same products with one factor replaced by
D's. It is a worst case, passed on like any error: usually thousands of times what happens. Source: own derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.mlp import MLPBlock
from ntkfusion.models.pytree import pytree
from ntkfusion.theory.layer_norm_bound import NormWeights, length
from ntkfusion.theory.layer_weights import AttentionWeights, LayerTrace, LayerWeights
from ntkfusion.theory.rounding import gamma


@pytree
class Rounding:
    """Allowances of a layer, per token: of z, of LayerNorm in front of the block, of the block, of LayerNorm behind.

    In front of a pre-norm layer's attention, `seen` is that of its LayerNorm, else 0.
    """

    seen: Float[Array, "B T"]
    sums: Float[Array, "B T"]
    inputs: Float[Array, "B T"]
    block: Float[Array, "B T"]
    hidden: Float[Array, "B T"]


def no_rounding(like: Float[Array, "B T"]) -> Rounding:
    """Real arithmetic."""
    zeros = jnp.zeros_like(like)
    return Rounding(zeros, zeros, zeros, zeros, zeros)


def embedding_rounding(h: Float[Array, "B T d"]) -> Float[Array, "B T"]:
    """What two programs may make of the same embeddings: 2 Γ (‖h‖ + √d max|h|), a sum and a LayerNorm of d entries."""
    return 2 * gamma(4 * h.shape[-1] + 64) * (_size(h) + h.shape[-1] ** 0.5 * jnp.max(jnp.abs(h), axis=-1))


def layer_rounding(
    weights: LayerWeights, blocks: tuple[MLPBlock, MLPBlock], trace: LayerTrace, eps: Float[Array, "B T"]
) -> Rounding:
    """The allowances of one layer.

    Args:
        weights: what both layers have around their blocks.
        blocks: the original and the compressed block, dense, without constants.
        trace: the compressed layer's.
        eps: bounds of ‖h − h̃‖ in front of the layer; ‖D‖ is below 2ε.

    Returns:
        The `Rounding`.
    """
    width, tokens = trace.h.shape[-1], trace.h.shape[1]
    unit, wide = gamma(4 * (width + tokens) + 64), gamma(4 * (width + max(b.hidden_width for b in blocks)) + 64)
    post = not weights.pre_norm
    seen = jnp.zeros_like(eps) if post else _norm_rounding(weights.first_norm, trace.h, eps, unit)
    grown = eps if post else eps * _steepest(weights.first_norm, trace.h)
    sums = _attention_rounding(weights.attention, _size(trace.x) + grown, grown, unit)
    sums = sums + 2 * unit * (_size(trace.h) + eps)
    norm = weights.first_norm if post else weights.second_norm
    inputs = _norm_rounding(norm, trace.z, eps, unit)
    block = _block_rounding(blocks, _size(trace.u) + 2 * eps * _steepest(norm, trace.z), wide)
    block = block + 2 * unit * (_size(trace.y) + eps)
    hidden = _norm_rounding(weights.second_norm, trace.y, eps, unit) if post else jnp.zeros_like(eps)
    return Rounding(seen, sums, inputs, block, hidden)


def _size(x: Float[Array, "B T d"]) -> Float[Array, "B T"]:
    return jnp.linalg.norm(x, axis=-1)


def _steepest(norm: NormWeights, z: Float[Array, "B T d"]) -> Float[Array, "B T"]:
    return z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale)) / length(norm, z)


def _norm_rounding(
    norm: NormWeights, z: Float[Array, "B T d"], eps: Float[Array, "B T"], unit: float
) -> Float[Array, "B T"]:
    radius = z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale))
    carried = 4 * (_size(z) + eps) * _steepest(norm, z) * (1 + eps / length(norm, z))
    return 2 * unit * (carried + radius + jnp.linalg.norm(norm.bias))


def _block_rounding(blocks: tuple[MLPBlock, MLPBlock], size: Float[Array, "B T"], unit: float) -> Float[Array, "B T"]:
    total = jnp.zeros_like(size)
    for block in blocks:
        bias, behind = (0.0 if b is None else jnp.linalg.norm(b) for b in (block.b1, block.b2))
        inner = size * jnp.linalg.norm(block.w1) + bias
        # the trajectory, the gap at ũ, and the derivative
        total = total + 3 * unit * (6 * jnp.linalg.norm(block.w2) * inner + behind)
    return total


def _attention_rounding(
    weights: AttentionWeights, size: Float[Array, "B T"], eps: Float[Array, "B T"], unit: float
) -> Float[Array, "B T"]:
    fq, fk, fv = (_heads(kernel) for kernel in (weights.query, weights.key, weights.value))
    fo = jnp.linalg.norm(weights.output, axis=(1, 2))[None, :, None]
    bq, bk, bv = (
        jnp.linalg.norm(b, axis=-1)[None, :, None] for b in (weights.query_bias, weights.key_bias, weights.value_bias)
    )
    here, most = size[:, None], jnp.max(size, axis=-1)[:, None, None]
    q, k, v = here * fq + bq, most * fk + bk, most * fv + bv
    relative = jnp.expm1(8 * unit * weights.scale * q * k) + unit
    moved, farthest = eps[:, None], jnp.max(eps, axis=-1)[:, None, None]
    pulled = 2 * weights.scale * v * (q * fk * farthest + k * fq * moved)
    each = fo * (v * (3 * unit + relative) + (8 * unit + 2 * relative) * 2 * (fv * farthest + pulled))
    return 2 * (jnp.sum(each, axis=1) + unit * jnp.linalg.norm(weights.output_bias))


def _heads(kernel: Float[Array, "d H e"]) -> Float[Array, "1 H 1"]:
    return jnp.linalg.norm(kernel, axis=(0, 2))[None, :, None]
