"""How far float64 arithmetic can carry the two trajectories of a network bound from the real ones, layer by layer.

Standard model, as in `ntkfusion.theory.blocks.rounding`: Γ = γ_n with n ≥ 4 times the sums that follow each other.
Capital letters bound norms on both trajectories, C what the direction D has become there (2ε in front of the layer, see
`layer_norm_bound.closed`), F are Frobenius norms (‖ |x| |W| ‖ ≤ X F_W); Q = X F_Q + ‖b_Q‖, K and V likewise, largest
over tokens,

    scores    4 Γ scale Q K =: s                weights   π = e^{2s} − 1 + Γ, relative
    attention Σ_h F_O V (3Γ + π) + Γ ‖b_O‖, size A = Σ_h F_O V + ‖b_O‖
    block     6 Γ F_V (U F_W + ‖b1‖) + Γ ‖b2‖ (|σ(h)| ≤ |h|, σ' ≤ 1.3; a wrong preactivation is a shifted bias)
    LayerNorm what it computes of z is Γ-close, relatively, to LN(z + e) with ‖e‖ ≤ Γ Z: centring rounds z, and nothing
              cancels after it. e belongs to the allowance of z, behind remain Γ (√d max|γ| + ‖β‖) and, for the known
              side, 2 Γ ‖z̃‖ √d max|γ|/‖z̃⁺‖
    sizes     Z = ‖h̃‖ + ε + A, U = √d max|γ| + ‖β‖ (pre-norm X too), Y = U (pre-norm Z) + F_V (U F_W + ‖b1‖) + ‖b2‖

each for two trajectories; derivatives add the same products with one factor replaced by D's. It is a worst case, passed
on like any error: usually thousands of times what happens (tests/theory/networks/test_network_rounding.py). Source: own
derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.blocks.rounding import gamma
from ntkfusion.theory.networks.layer_norm_bound import NormWeights, length
from ntkfusion.theory.networks.network_weights import AttentionWeights, LayerTrace, LayerWeights
from ntkfusion.utils.pytrees import pytree


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


@pytree
class Part:
    """What a part of a layer does.

    Attributes:
        error: its allowance.
        size: a bound of what it adds to the sum behind it, on both trajectories.
        carried: a bound of what it makes of D.
    """

    error: Float[Array, "B T"]
    size: Float[Array, "B T"]
    carried: Float[Array, "B T"]


def no_rounding(like: Float[Array, "B T"]) -> Rounding:
    """Real arithmetic."""
    zeros = jnp.zeros_like(like)
    return Rounding(zeros, zeros, zeros, zeros, zeros)


def embedding_rounding(h: Float[Array, "B T d"]) -> Float[Array, "B T"]:
    """What two programs may make of the same embeddings: 4 Γ (‖h‖ + √d max|h|), a sum and a LayerNorm of d entries."""
    return 4 * gamma(4 * h.shape[-1] + 64) * (_size(h) + h.shape[-1] ** 0.5 * jnp.max(jnp.abs(h), axis=-1))


def layer_rounding(
    weights: LayerWeights, blocks: tuple[MLPBlock, MLPBlock], trace: LayerTrace, eps: Float[Array, "B T"]
) -> Rounding:
    """The allowances of one layer.

    Args:
        weights: what both layers have around their blocks.
        blocks: the original and the compressed block, dense, without constants.
        trace: the compressed layer's.
        eps: bounds of ‖h − h̃‖ in front of the layer; ‖D‖ is at most 2ε.

    Returns:
        The `Rounding`.
    """
    width, tokens = trace.h.shape[-1], trace.h.shape[1]
    unit, wide = gamma(4 * (width + tokens) + 64), gamma(4 * (width + max(b.hidden_width for b in blocks)) + 64)
    h, moved, pre = _size(trace.h) + eps, 2 * eps, weights.pre_norm
    seen, x, moved_x = jnp.zeros_like(eps), h, moved
    if pre:
        seen = norm_rounding(weights.first_norm, trace.h, moved, unit)
        x, moved_x = jnp.full_like(h, _sphere(weights.first_norm)), moved * _steepest(weights.first_norm, trace.h)
    attention = _attention(weights.attention, x, moved_x, unit)
    z, moved_z = h + attention.size, moved + attention.carried
    norm = weights.second_norm if pre else weights.first_norm
    u, moved_u = jnp.full_like(h, _sphere(norm)), moved_z * _steepest(norm, trace.z)
    block = _block(blocks, u, moved_u, wide)
    y, moved_y = (z, moved_z) if pre else (u, moved_u)
    y, moved_y = y + block.size, moved_y + block.carried
    return Rounding(
        seen,
        # the sum itself, and the centring of the LayerNorm that reads it
        attention.error + 6 * unit * (z + moved_z),
        norm_rounding(norm, trace.z, moved_z, unit),
        block.error + 6 * unit * (y + moved_y),
        jnp.zeros_like(eps) if pre else norm_rounding(weights.second_norm, trace.y, moved_y, unit),
    )


def norm_rounding(
    norm: NormWeights, z: Float[Array, "B T d"], moved: Float[Array, "B T"], unit: float
) -> Float[Array, "B T"]:
    """A LayerNorm, centring left out: of its outputs, of the known side, and of what becomes of D, ‖D‖ ≤ `moved`."""
    known = _size(z) + moved * (1 + _size(z) / length(norm, z))
    return unit * (2 * _sphere(norm) + 4 * _steepest(norm, z) * known)


def _size(x: Float[Array, "B T d"]) -> Float[Array, "B T"]:
    return jnp.linalg.norm(x, axis=-1)


def _sphere(norm: NormWeights) -> Float[Array, ""]:
    """No output of a LayerNorm is longer."""
    return norm.scale.shape[0] ** 0.5 * jnp.max(jnp.abs(norm.scale)) + jnp.linalg.norm(norm.bias)


def _steepest(norm: NormWeights, z: Float[Array, "B T d"]) -> Float[Array, "B T"]:
    return z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale)) / length(norm, z)


def _block(
    blocks: tuple[MLPBlock, MLPBlock], size: Float[Array, "B T"], moved: Float[Array, "B T"], unit: float
) -> Part:
    """Both blocks: on the trajectories, the gap at ũ, and the derivative, whose slopes are off by Γ (U F_W + ‖b1‖)."""
    error, whole, carried = (jnp.zeros_like(size) for _ in range(3))
    for block in blocks:
        bias, behind = (0.0 if b is None else jnp.linalg.norm(b) for b in (block.b1, block.b2))
        fw, fv = jnp.linalg.norm(block.w1), jnp.linalg.norm(block.w2)
        inner = size * fw + bias
        error = error + 3 * unit * (6 * fv * (inner + moved * fw * (1 + inner)) + behind)
        whole, carried = whole + fv * inner + behind, carried + 1.3 * fv * fw * moved
    return Part(error, whole, carried)


def _attention(weights: AttentionWeights, size: Float[Array, "B T"], moved: Float[Array, "B T"], unit: float) -> Part:
    fq, fk, fv = (_heads(kernel) for kernel in (weights.query, weights.key, weights.value))
    fo = jnp.linalg.norm(weights.output, axis=(1, 2))[None, :, None]
    bq, bk, bv = (
        jnp.linalg.norm(b, axis=-1)[None, :, None] for b in (weights.query_bias, weights.key_bias, weights.value_bias)
    )
    here, most = size[:, None], jnp.max(size, axis=-1)[:, None, None]
    q, k, v = here * fq + bq, most * fk + bk, most * fv + bv
    relative, bias = jnp.expm1(8 * unit * weights.scale * q * k) + unit, jnp.linalg.norm(weights.output_bias)
    farthest = jnp.max(moved, axis=-1)[:, None, None]
    # |τ¹| ≤ scale (‖D_t‖ F_Q ‖k − k̄‖ + ‖D_s‖ F_K ‖q‖), times ‖ṽ − c‖ ≤ 2 V
    pulled = 4 * weights.scale * v * (q * fk * farthest + k * fq * moved[:, None])
    carried = fo * (fv * farthest + pulled)
    errors = 2 * fo * v * (3 * unit + relative) + (16 * unit + 4 * relative) * carried
    total = [jnp.sum(jnp.broadcast_to(part, q.shape), axis=1) for part in (errors, fo * v, carried)]
    return Part(total[0] + 2 * unit * bias, total[1] + bias, total[2])


def _heads(kernel: Float[Array, "d H e"]) -> Float[Array, "1 H 1"]:
    return jnp.linalg.norm(kernel, axis=(0, 2))[None, :, None]
