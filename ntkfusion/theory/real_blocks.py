"""Real MLP blocks with what reaches them, for checks that depend on data."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import DEMO
from ntkfusion.data.inputs import collect_block_inputs
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.mlp import MLPBlock
from ntkfusion.models.model import Model
from ntkfusion.theory.check import Real, double_precision

#: Tokens that data-dependent checks look at.
TOKENS = 64


def model_blocks(model: Model, sentences: Sequence[str], *, tokens: int = TOKENS, seed: int = 0) -> Real:
    """Every dense MLP block of a model with the inputs that sentences give it, in float64.

    Args:
        model: in float32 or float64, with a tokenizer.
        sentences: the text.
        tokens: how many tokens are sampled.
        seed: of the sample.

    Returns:
        The blocks, their constants folded away, and their inputs.

    Raises:
        InputError: if the model cannot read text or has no dense block.
    """
    inputs = collect_block_inputs(model, sentences, max_tokens=tokens, seed=seed).inputs
    with double_precision():
        blocks = {
            layer: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), block.fold())
            for layer, block in enumerate(model.mlp_blocks())
            if isinstance(block, MLPBlock)
        }
        if not blocks:
            raise InputError(f"{model.source} has no dense MLP block to check bounds on")
        return Real(model.source, blocks, {layer: jnp.asarray(inputs[layer], jnp.float64) for layer in blocks})


def packaged_blocks(seed: int = 0) -> tuple[Real, ...]:
    """Those of the packaged model on the packaged sentences; nothing if it is not installed."""
    try:
        model = load_model(DEMO)
    except CheckpointError:
        return ()
    return (model_blocks(model, sample_sentences(), seed=seed),)
