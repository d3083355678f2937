"""Random neurons: the control that every method should beat, and on some measures does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import select_neurons
from ntkfusion.compression.workspace import Workspace
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock


@dataclasses.dataclass(frozen=True)
class RandomNeurons(LayerwiseMethod):
    """Keep a uniformly random subset of c neurons.

    Attributes:
        keep_ratio: the kept share of the hidden width.
        rescale: put the constant q = m/c behind the activation, which makes the output and the sign kernel unbiased
            (every neuron stands for m/c of them); otherwise keep the neurons as they are.
    """

    rescale: bool = True

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Draw the neurons."""
        m = block.hidden_width
        count = self.kept_neurons(m)
        kept = jnp.sort(jax.random.permutation(workspace.key("random-neurons", index), m)[:count])
        selected = select_neurons(block, kept)
        return selected.replace(q=jnp.full(count, m / count, block.w1.dtype)) if self.rescale else selected, {}
