"""Neurons as vectors: the view of a dense block that clustering and pruning share."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.mlp import MLPBlock


def neuron_vectors(block: MLPBlock) -> Float[Array, "m features"]:
    """θ_i = [w_i; b_i; v_i] of every neuron, one per row; without input biases [w_i; v_i]."""
    columns = [block.w1.T, block.w2] if block.b1 is None else [block.w1.T, block.b1[:, None], block.w2]
    return jnp.concatenate(columns, axis=1)


def block_of_neurons(vectors: Float[Array, "c features"], like: MLPBlock) -> MLPBlock:
    """The block whose neurons are the given vectors; output biases and activation are those of `like`."""
    d = like.model_width
    b1 = None if like.b1 is None else vectors[:, d]
    w2 = vectors[:, d if like.b1 is None else d + 1 :]
    return like.replace(w1=vectors[:, :d].T, b1=b1, w2=w2, q=None, r=None)


def select_neurons(block: MLPBlock, neurons: Int[Array, " c"]) -> MLPBlock:
    """The block with only the named neurons, in the given order."""
    b1 = None if block.b1 is None else block.b1[neurons]
    return block.replace(w1=block.w1[:, neurons], b1=b1, w2=block.w2[neurons], q=None, r=None)


def weight_products(block: MLPBlock) -> Float[Array, " m"]:
    """‖w_i‖ ‖v_i‖ of every neuron: how much a neuron can move the output per unit of input."""
    return jnp.linalg.norm(block.w1, axis=0) * jnp.linalg.norm(block.w2, axis=1)


def largest(scores: Float[Array, " m"], count: int) -> Int[Array, " count"]:
    """Indices of the `count` largest scores in their original order; ties go to the lower index."""
    return jnp.sort(jnp.argsort(-scores, stable=True)[:count])
