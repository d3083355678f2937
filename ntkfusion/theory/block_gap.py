"""What is known of f − f̃ of two MLP blocks at the compressed model's own inputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.mlp import MLPBlock
from ntkfusion.models.pytree import pytree
from ntkfusion.theory.evaluation import evaluate_unchecked
from ntkfusion.theory.output_bounds import per_output_bound
from ntkfusion.theory.pairs import FusedPair
from ntkfusion.theory.rounding import output_allowance


@pytree
class Gap:
    """What is known of f − f̃.

    Attributes:
        size: at least its norm, [B, T].
        vector: itself, [B, T, d]; None where only the norm is bounded.
    """

    size: Float[Array, "B T"]
    vector: Float[Array, "B T d"] | None = None


def measured_gap(block: MLPBlock, compressed: Any, u: Float[Array, "B T d"]) -> Gap:
    """F(u) − f̃(u), by running both blocks."""
    vector = block(u) - compressed(u)
    return Gap(jnp.linalg.norm(vector, axis=-1), vector)


def bounded_gap(pair: FusedPair, u: Float[Array, "B T d"]) -> Gap:
    """‖ |ℓ| + Σ_i |v_i| R̄_i ‖, the tight output bound."""
    side = evaluate_unchecked(pair, u.reshape(-1, u.shape[-1]))
    each = per_output_bound(pair, side) + output_allowance(pair, side.rounding)
    return Gap(jnp.linalg.norm(each, axis=-1).reshape(u.shape[:2]))
