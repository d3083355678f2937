"""Tiny networks in float64 for checks of whole networks: random ones, and ones whose neurons are near-duplicates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.compression.methods.mlp_fusion import fuse
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model, random_model
from ntkfusion.verification.bounds import FAST
from ntkfusion.verification.cases import clusters_of, normal, planted_labels, repeated

#: Keyword arguments of `Model.apply`.
Inputs = dict[str, Any]

TINY = BertConfig(
    vocab_size=50,
    hidden_size=12,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
    initializer_range=0.15,
    num_labels=3,
)


def double_model(config: ModelConfig, seed: int = 0) -> Model:
    """A random model in float64 whose biases and LayerNorms are random too."""
    leaves, tree = jax.tree.flatten(jax.jit(lambda: random_model(config, seed).params, compiler_options=FAST)())
    arrays = [np.asarray(leaf, np.float64) for leaf in leaves]
    wider = [array + 0.1 * normal(100 * seed + i, *array.shape) * (array.ndim == 1) for i, array in enumerate(arrays)]
    return Model(config, jax.tree.unflatten(tree, [jnp.asarray(array) for array in wider]))


def planted_networks(model: Model, residual: float, seed: int = 0) -> tuple[Model, Model]:
    """A model whose neurons come in pairs that differ by `residual` of their size, and its fusion to half (V1).

    Args:
        model: in float64, with dense blocks; the first half of every block's neurons is used.
        residual: root mean square of what is added to weights, as a part of theirs.
        seed: of what is added.

    Returns:
        Original and compressed model.
    """
    originals, fused = {}, {}
    for index, block in enumerate(model.mlp_blocks()):
        assert isinstance(block, MLPBlock)
        sizes = [2] * (block.hidden_width // 2)
        twice = repeated(block.fold(), sizes)
        noisy = {name: _moved(array, residual, 1000 * seed + index) for name, array in twice.parameters().items()}
        originals[index] = twice.replace(**noisy)
        fused[index] = fuse(originals[index], clusters_of(originals[index], planted_labels(sizes)), "v1")
    return model.replace_mlp_blocks(originals), model.replace_mlp_blocks(fused)


def tiny_batch(seed: int = 0, batch: int = 2, length: int = 5) -> Inputs:
    """Token ids, the last two of the last row being padding."""
    ids = jax.random.randint(jax.random.key(seed), (batch, length), 1, TINY.vocab_size)
    return {"input_ids": ids, "attention_mask": jnp.ones_like(ids).at[-1, -2:].set(0)}


def _moved(array: Float[Array, "*s"], residual: float, seed: int) -> Float[Array, "*s"]:
    size = jnp.sqrt(jnp.mean(array * array))
    return array + residual * size * jnp.asarray(normal(seed + array.size, *array.shape))
