"""Unstructured pruning: remove the weights that matter least, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import jax.numpy as jnp

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import Importance, first_order, l1, mask_of_largest, pruned_block, surviving_weights
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock

Score = Literal["magnitude", "first-order"]

Scope = Literal["matrix", "block"]

_SCORES: dict[str, Importance] = {"magnitude": l1, "first-order": first_order}


@dataclasses.dataclass(frozen=True)
class WeightPruning(LayerwiseMethod):
    """Keep the weights with the largest scores: as many as a dense block of `keep_ratio`·m neurons has numbers.

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
        score: "magnitude" |w|, or "first-order" |w| √Fisher, the root mean square of the Taylor score |w ∂L/∂w| over
            examples; see `compression.neurons.first_order` for where the gradients come from. Movement pruning,
            whose scores add up while a network is trained, is not this.
        scope: "matrix" keeps the same fraction of W1 and of W2; "block" has one threshold for both.
    """

    score: Score = "magnitude"
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a keep ratio out of range, or an unknown score or scope.
        """
        super().__post_init__()
        for name, known in (("score", get_args(Score)), ("scope", get_args(Scope))):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r} of pruning; known: {', '.join(known)}")

    def makes(self) -> type[Block]:
        """Blocks of another kind; see `Method.makes`."""
        return MaskedBlock

    def check_block(self, block: MLPBlock) -> None:
        """Refuse widths that leave no weights; see `LayerwiseMethod.check_block`."""
        surviving_weights(block, self.kept_neurons(block.hidden_width))

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Rank the weights and mask all but the best."""
        first, second = surviving_weights(block, self.kept_neurons(block.hidden_width))
        scores = _SCORES[self.score](block, index, workspace)
        if self.scope == "matrix":
            return pruned_block(block, mask_of_largest(scores["w1"], first), mask_of_largest(scores["w2"], second))
        together = jnp.concatenate([scores["w1"].ravel(), scores["w2"].ravel()])
        mask = mask_of_largest(together[None, :], first + second)[0]
        cut = block.w1.size
        return pruned_block(block, mask[:cut].reshape(block.w1.shape), mask[cut:].reshape(block.w2.shape))
