"""What an MLP block does to the distance of two trajectories: its own error, and how far it carries inputs apart.

The error f − f̃ of a compressed block at the compressed model's own inputs is measured, or bounded (`Gap`). How far f
carries two inputs apart (`BlockChange`), when one of them and a bound ε of their distance are known:
f(u) = Σ_i v_i σ(w_i·u + b_i) + b2, h̃_i the preactivation at the known ũ, g̃_i = σ'(h̃_i), Δ_i = w_i·δ, |Δ_i| ≤ r_i =
‖w_i‖ ε. With R_i ≥ |σ(h̃_i + Δ) − σ(h̃_i) − g̃_i Δ| for all |Δ| ≤ r_i (the remainder's majorant at both ends, monotone in
|Δ| as is its quotient with |Δ|) and t_i = R_i/r_i,

    curvature   ‖f(ũ + δ) − f(ũ) − Df(ũ) δ‖ ≤ min(‖ Σ_i |v_i| R_i ‖, ‖V‖ ‖W‖ ε max t_i)
    change      ‖f(ũ + δ) − f(ũ)‖ ≤ min(ε ‖V‖ ‖W‖ max(|g̃_i| + t_i), ‖ Σ_i |v_i| (|g̃_i| r_i + R_i) ‖, ε L1 ‖V‖ ‖W‖)

Source: own derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.majorants import remainder_majorant
from ntkfusion.theory.activations.suprema import suprema
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked
from ntkfusion.theory.blocks.output_bounds import OUTPUT_TERMS, per_output_bound
from ntkfusion.theory.blocks.pairs import FusedPair
from ntkfusion.theory.blocks.rounding import output_allowance
from ntkfusion.theory.networks.layer_norm_bound import spectral_bound
from ntkfusion.utils.pytrees import pytree


@pytree
class Gap:
    """What is known of f − f̃.

    Attributes:
        size: at least its norm, [B, T].
        vector: itself, [B, T, d]; None where only the norm is bounded.
    """

    size: Float[Array, "B T"]
    vector: Float[Array, "B T d"] | None = None


def measured_gap(block: MLPBlock, compressed: Block, u: Float[Array, "B T d"]) -> Gap:
    """The difference f(u) − f̃(u), by running both blocks."""
    vector = block(u) - compressed(u)
    return Gap(jnp.linalg.norm(vector, axis=-1), vector)


def bounded_gap(pair: FusedPair, u: Float[Array, "B T d"]) -> Gap:
    """‖ |ℓ| + Σ_i |v_i| R̄_i ‖, the tight output bound."""
    side = evaluate_unchecked(pair, u.reshape(-1, u.shape[-1]))
    each = per_output_bound(pair, side, OUTPUT_TERMS) + output_allowance(pair, side.rounding)
    return Gap(jnp.linalg.norm(each, axis=-1).reshape(u.shape[:2]))


@pytree
class BlockChange:
    """What a block can do to inputs near the known ones.

    Attributes:
        change: bound of ‖f(ũ + δ) − f(ũ)‖.
        curvature: bound of what its linear part leaves.
    """

    change: Float[Array, "*batch"]
    curvature: Float[Array, "*batch"]


def block_change(
    block: MLPBlock, norms: Float[Array, ""], u: Float[Array, "*batch d"], eps: Float[Array, "*batch"]
) -> BlockChange:
    """Both bounds of the module for every known input.

    Args:
        block: a dense block without constants.
        norms: ‖V‖ ‖W‖, from `block_norms`.
        u: the known inputs.
        eps: how far the others may be.

    Returns:
        The `BlockChange`.
    """
    h = block.preactivation(u)
    ones = (1,) * (u.ndim - 1)
    reach = jnp.linalg.norm(block.w1, axis=0).reshape(*ones, -1) * eps[..., None]
    rest = jnp.maximum(*(remainder_majorant(block.activation, h, side * reach) for side in (1.0, -1.0)))
    slope = jnp.abs(derivatives(block.activation).first(h))
    bend = rest / jnp.where(reach > 0, reach, 1)
    v = jnp.abs(block.w2)
    curvature = jnp.minimum(jnp.linalg.norm(rest @ v, axis=-1), norms * eps * jnp.max(bend, axis=-1))
    steepest = jnp.minimum(jnp.max(slope + bend, axis=-1), suprema(block.activation).l1)
    change = jnp.minimum(norms * eps * steepest, jnp.linalg.norm((slope * reach + rest) @ v, axis=-1))
    return BlockChange(change, curvature)


def block_norms(block: MLPBlock) -> Float[Array, ""]:
    """‖V‖ ‖W‖, from above."""
    return spectral_bound(block.w1) * spectral_bound(block.w2)


def block_derivative(block: MLPBlock, u: Float[Array, "*batch d"]) -> Float[Array, "*batch d o"]:
    """Df(u), to be multiplied by rows δ from the left."""
    slopes = derivatives(block.activation).first(block.preactivation(u))
    return jnp.einsum("di,...i,io->...do", block.w1, slopes, block.w2)
