"""Real MLP blocks with what reaches them, for checks that depend on data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import DEMO
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.model import Model
from ntkfusion.verification.check import Real, double_precision

#: Tokens that data-dependent checks look at.
TOKENS = 64

#: As many as a batch has.
QUICK_SENTENCES = 32

_KINDS = ("weight", "bias")


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


def packaged_blocks(seed: int = 0, *, quick: bool = False) -> tuple[Real, ...]:
    """Those of the packaged model on the packaged sentences, if it is installed; `bert_tiny_blocks`, if it is there.

    Args:
        seed: of the sampled tokens.
        quick: take few sentences, so that the network is compiled for one shape.
    """
    sentences = sample_sentences()[: QUICK_SENTENCES if quick else None]
    try:
        packaged = (model_blocks(load_model(DEMO), sentences, seed=seed),)
    except CheckpointError:
        packaged = ()
    return packaged + bert_tiny_blocks(seed)


def bert_tiny_blocks(seed: int = 0, tokens: int = TOKENS) -> tuple[Real, ...]:
    """A BERT-tiny fine-tuned on SST-2, if its ``bert_tiny_sst2/layers.npz`` is in the folder $NTKFUSION_DATA_DIR.

    The file has no embeddings, hence takes no text. What reaches an MLP block is the output of the LayerNorm before it,
    so its inputs are normal numbers, standardised, with that LayerNorm's scale and bias.

    Args:
        seed: of the normal numbers.
        tokens: how many inputs.

    Returns:
        The blocks and inputs, in a tuple of one; an empty tuple where the file is not.
    """
    file = Path(os.environ.get("NTKFUSION_DATA_DIR", "")) / "bert_tiny_sst2" / "layers.npz"
    if not file.is_file():
        return ()
    generator = np.random.default_rng(seed)
    blocks, inputs = {}, {}
    with np.load(file) as arrays, double_precision():
        for layer in range(2):
            place = f"bert.encoder.layer.{layer}."
            dense = [arrays[f"{place}{part}.dense.{kind}"] for part in ("intermediate", "output") for kind in _KINDS]
            weights = (dense[0].T, dense[1], dense[2].T, dense[3])
            blocks[layer] = MLPBlock(*(jnp.asarray(array, jnp.float64) for array in weights), activation="gelu")
            x = generator.standard_normal((tokens, dense[0].shape[1]))
            x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
            scale, shift = (arrays[f"{place}attention.output.LayerNorm.{kind}"] for kind in _KINDS)
            inputs[layer] = jnp.asarray(x * scale[None, :] + shift[None, :], jnp.float64)
    return (Real("BERT-tiny", blocks, inputs),)
