"""Activation-aware unstructured pruning (Wanda).

Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import mask_per_output, pruned_block, surviving_weights
from ntkfusion.compression.workspace import Workspace
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock


@dataclasses.dataclass(frozen=True)
class ActivationPruning(LayerwiseMethod):
    """Keep, for every output of a matrix, the weights with the largest ``|W_ji| ‖x_j‖₂`` over calibration inputs.

    The inputs of W2 are the hidden activations of the original block. Every output neuron (a column here) keeps as many
    weights as the others; single weights that this leaves over go to the columns that lost the most.

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
    """

    def makes(self) -> type[Block]:
        """Blocks of another kind; see `Method.makes`."""
        return MaskedBlock

    def check_block(self, block: MLPBlock) -> None:
        """Refuse widths that leave no weights; see `LayerwiseMethod.check_block`."""
        surviving_weights(block, self.kept_neurons(block.hidden_width))

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Score the weights of both matrices by what reaches them, and mask all but the best of every output."""
        inputs = workspace.inputs(index)
        counts = surviving_weights(block, self.kept_neurons(block.hidden_width))
        hidden = block.hidden(inputs)
        scores = [
            jnp.abs(weights) * jnp.linalg.norm(rows, axis=0)[:, None]
            for weights, rows in ((block.w1, inputs), (block.w2, hidden))
        ]
        mask1, mask2 = (mask_per_output(score, count) for score, count in zip(scores, counts, strict=True))
        return pruned_block(block, mask1, mask2)
