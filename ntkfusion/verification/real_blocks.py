"""Real models for checks that depend on data: MLP blocks with what reaches them, and a whole network."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import DEMO
from ntkfusion.data.block_inputs import collect_block_inputs, tokenize
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.model import Model
from ntkfusion.verification.check import RealBlocks, double_precision
from ntkfusion.verification.networks import Inputs

#: Tokens that data-dependent checks look at.
TOKENS = 64


#: As many as a batch has.
QUICK_SENTENCES = 32


def model_blocks(model: Model, sentences: Sequence[str], *, tokens: int = TOKENS, seed: int = 0) -> RealBlocks:
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
        return RealBlocks(model.source, blocks, {layer: jnp.asarray(inputs[layer], jnp.float64) for layer in blocks})


def packaged_blocks(seed: int = 0, *, quick: bool = False) -> tuple[RealBlocks, ...]:
    """Those of the packaged model on the packaged sentences, if it is installed; else none.

    Args:
        seed: of the sampled tokens.
        quick: take few sentences, so that the network is compiled for one shape.
    """
    sentences = sample_sentences()[: QUICK_SENTENCES if quick else None]
    try:
        return (model_blocks(load_model(DEMO), sentences, seed=seed),)
    except CheckpointError:
        return ()


def packaged_network(count: int = 1) -> tuple[Model, Inputs] | None:
    """The packaged model in float64 and its shortest sentences of one length; None if it is not installed."""
    try:
        model = load_model(DEMO, dtype="float64")
    except CheckpointError:
        return None
    encodings = sorted(tokenize(model, sample_sentences(), max_length=32)[0], key=len)
    alike = [ids for ids in encodings if len(ids) == len(encodings[0])][:count]
    ids = jnp.asarray(alike, jnp.int32)
    return model, {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
