"""Gaussian sketching of the hidden layer (a baseline of the MLP Fusion paper)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import block_of_neurons, largest, neuron_vectors, weight_products
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock


@dataclasses.dataclass(frozen=True)
class Sketch(LayerwiseMethod):
    """W1 → W1 S, b1 → Sᵀ b1, W2 → Sᵀ W2 with a random S of c − k columns, S_ab ~ N(0, 1/(c − k)), E[S Sᵀ] = I.

    The k neurons with the largest ‖w_i‖‖v_i‖ are kept as they are and only the others are sketched (the top-k option).
    The sketch is unbiased for linear σ only.

    Attributes:
        keep_ratio: the kept share of the hidden width.
        top_k: fraction of the c kept neurons that are taken over unchanged; 0 sketches everything.
    """

    top_k: float = 0.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a keep ratio or a fraction out of range.
        """
        super().__post_init__()
        if not 0 <= self.top_k <= 1:
            raise InputError(f"top_k is a fraction of the kept neurons, from 0 to 1; got {self.top_k}")

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Keep the top k neurons and sketch the rest."""
        vectors, count = neuron_vectors(block), self.kept_neurons(block.hidden_width)
        verbatim = count if count == block.hidden_width else round(self.top_k * count)
        kept = largest(weight_products(block), verbatim)
        rest = jnp.delete(jnp.arange(block.hidden_width), kept, assume_unique_indices=True)
        columns = count - verbatim
        shape = (columns, block.hidden_width - verbatim)
        normal = jax.random.normal(workspace.key("sketch", index), shape, vectors.dtype)
        sketched = (normal / jnp.sqrt(max(columns, 1)).astype(vectors.dtype)) @ vectors[rest]
        return block_of_neurons(jnp.concatenate([vectors[kept], sketched]), block), {"kept_verbatim": float(verbatim)}
