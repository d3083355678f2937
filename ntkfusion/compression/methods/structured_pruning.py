"""Structured pruning: keep the neurons with the largest weights, whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import largest, select_neurons, weight_products
from ntkfusion.compression.workspace import Workspace
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock


@dataclasses.dataclass(frozen=True)
class StructuredPruning(LayerwiseMethod):
    """Keep the c neurons with the largest ‖w_i‖‖v_i‖, columns of W1 and rows of W2 together ("aligned").

    Ranking columns and rows separately, as one published implementation does, pairs the inputs of some neurons with the
    outputs of others.

    Attributes:
        keep_ratio: the kept share of the hidden width.
    """

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Select the neurons."""
        scores = weight_products(block)
        kept = largest(scores, self.kept_neurons(block.hidden_width))
        return select_neurons(block, kept), {"kept_score": float(scores[kept].sum() / scores.sum())}
