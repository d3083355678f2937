"""The MLP blocks of a BERT-tiny fine-tuned on SST-2, from an author's data folder."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.verification.check import RealBlocks, double_precision

KINDS = ("weight", "bias")


def bert_tiny_blocks(folder: Path, seed: int = 0, tokens: int = 64) -> RealBlocks:
    """The blocks of ``bert_tiny_sst2/layers.npz``.

    The file has no embeddings, hence takes no text. What reaches an MLP block is the output of the LayerNorm before it,
    so its inputs are normal numbers, standardised, with that LayerNorm's scale and bias.
    """
    generator = np.random.default_rng(seed)
    blocks, inputs = {}, {}
    with np.load(folder / "bert_tiny_sst2" / "layers.npz") as arrays, double_precision():
        for layer in range(2):
            place = f"bert.encoder.layer.{layer}."
            dense = [arrays[f"{place}{part}.dense.{kind}"] for part in ("intermediate", "output") for kind in KINDS]
            weights = (dense[0].T, dense[1], dense[2].T, dense[3])
            blocks[layer] = MLPBlock(*(jnp.asarray(array, jnp.float64) for array in weights), activation="gelu")
            x = generator.standard_normal((tokens, dense[0].shape[1]))
            x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
            scale, shift = (arrays[f"{place}attention.output.LayerNorm.{kind}"] for kind in KINDS)
            inputs[layer] = jnp.asarray(x * scale[None, :] + shift[None, :], jnp.float64)
    return RealBlocks("BERT-tiny", blocks, inputs)
