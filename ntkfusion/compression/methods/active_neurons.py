"""Structured activation-aware pruning: keep the neurons that do the most, whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import fraction, largest, select_neurons
from ntkfusion.compression.workspace import Workspace
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock


@dataclasses.dataclass(frozen=True)
class ActiveNeurons(LayerwiseMethod):
    """Keep the c neurons with the largest ``rms(a_i) ‖v_i‖``, a their activations on calibration inputs.

    That is the root mean square of what a neuron adds to the output: where `StructuredPruning` has to guess the
    activation from ‖w_i‖, this measures it.

    Attributes:
        keep_ratio: the kept share of the hidden width.
    """

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Select the neurons."""
        scores = contributions(block, workspace.inputs(index))
        kept = largest(scores, self.kept_neurons(block.hidden_width))
        return select_neurons(block, kept), {"kept_score": fraction(jnp.sum(scores[kept]), jnp.sum(scores))}


def contributions(block: MLPBlock, inputs: Float[Array, "N d"]) -> Float[Array, " m"]:
    """rms(a_i) ‖v_i‖ of every neuron: the root mean square of its part of the output."""
    activations = block.hidden(inputs)
    return jnp.sqrt(jnp.mean(activations**2, axis=0)) * jnp.linalg.norm(block.w2, axis=1)
