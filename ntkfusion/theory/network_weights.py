"""A network's layers as plain arrays: BERT, RoBERTa, ALBERT and GPT-2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.encoder_config import EncoderConfig
from ntkfusion.models.gpt2_config import GPT2Config
from ntkfusion.models.mlp import MLPBlock
from ntkfusion.models.model import Model, subtree
from ntkfusion.theory.layer_norm_bound import NormWeights
from ntkfusion.theory.layer_weights import AttentionWeights, LayerWeights

Params = Mapping[str, Any]


def network_layers(model: Model) -> list[LayerWeights]:
    """What every layer has beside its MLP block, in the order in which data passes through.

    Args:
        model: a BERT, RoBERTa, ALBERT or GPT-2 in float64.

    Returns:
        One `LayerWeights` per application.

    Raises:
        InputError: for another architecture, or weights that are not in float64.
    """
    config = known_config(model)
    if any(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(model.params)):
        raise InputError(
            f"bounds are evaluated in float64 and {model.source} is not: call "
            "jax.config.update('jax_enable_x64', True) and load_model(..., dtype='float64')"
        )
    trees = [subtree(model.params, config.layer_paths[index]) for index in config.applications]
    if isinstance(config, GPT2Config):
        return [_gpt2_layer(tree, config, index) for index, tree in enumerate(trees)]
    return [_encoder_layer(tree, config) for tree in trees]


def known_config(model: Model) -> EncoderConfig | GPT2Config:
    """The configuration of a model whose layers this module can read.

    Raises:
        InputError: for another architecture.
    """
    if isinstance(model.config, EncoderConfig | GPT2Config):
        return model.config
    raise InputError(f"network bounds know BERT, RoBERTa, ALBERT and GPT-2, not {model.config.architecture}")


def check_same_but_blocks(original: Model, compressed: Model) -> list[MLPBlock]:
    """The original's MLP blocks without constants, if the models differ in nothing else.

    Raises:
        InputError: with the first array that differs; for original blocks that are not dense.
    """
    configs = [dataclasses.replace(model.config, mlp_layouts=()) for model in (original, compressed)]
    if configs[0] != configs[1]:
        raise InputError("the models must be equal but for their MLP blocks; their configurations differ")
    old, new = (_without_blocks(model) for model in (original, compressed))
    if old.keys() != new.keys():
        raise InputError(f"the models differ in more than their MLP blocks: {sorted(old.keys() ^ new.keys())[0]}")
    for path, array in old.items():
        if not np.array_equal(np.asarray(array), np.asarray(new[path])):
            raise InputError(f"the models must be equal but for their MLP blocks; {path} differs")
    blocks = original.mlp_blocks()
    dense = [block.fold() for block in blocks if isinstance(block, MLPBlock)]
    if len(dense) < len(blocks):
        raise InputError("the original's MLP blocks must be dense; merge factorised and masked ones first")
    return dense


def _without_blocks(model: Model) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(model.params)[0]
    named = {"/".join(str(key.key) for key in path): leaf for path, leaf in flat}
    return {name: leaf for name, leaf in named.items() if "/mlp/" not in name}


def embedded(model: Model, batch: Batch) -> Float[Array, "B T d"]:
    """What reaches the first layer."""
    return _embedded(model.config, model.params, model.constants, batch)


@partial(jax.jit, static_argnames="config")
def _embedded(config: ModelConfig, params: Params, constants: Params, batch: Batch) -> Float[Array, "B T d"]:
    """Compiled: the layers behind, which nobody reads, are left out."""
    wanted = "embedding_map" if "embedding_map" in params else "embeddings"

    def keep(module: Any, method: str) -> bool:
        return module.name == wanted and method == "__call__"

    variables = {"params": params, "constants": constants}
    state: Any = config.build().apply(variables, batch, capture_intermediates=keep, mutable=["intermediates"])[1]
    return state["intermediates"][wanted]["__call__"][0]


def visibility(model: Model, mask: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Who attends to whom; a token that would see nobody sees itself, which no token that counts notices.

    Raises:
        InputError: if a row of the mask has no token.
    """
    if not bool(jnp.all(jnp.any(mask > 0, axis=1))):
        raise InputError("every row of attention_mask must have a token")
    length = mask.shape[1]
    seen = jnp.broadcast_to(mask[:, None, :] > 0, (mask.shape[0], length, length))
    if isinstance(model.config, GPT2Config):
        seen = seen & jnp.tril(jnp.ones((length, length), bool))[None]
    return seen | (jnp.eye(length, dtype=bool)[None] & ~jnp.any(seen, axis=-1, keepdims=True))


def norm_weights(tree: Params, eps: float) -> NormWeights:
    """A LayerNorm's arrays."""
    return NormWeights(tree["scale"], tree["bias"], eps)


def _encoder_layer(tree: Params, config: EncoderConfig) -> LayerWeights:
    heads, parts = config.num_attention_heads, tree["attention"]
    arrays: list[Array] = []
    for name in ("query", "key", "value"):
        arrays += _split(parts[name]["kernel"], parts[name]["bias"], heads)
    scale = (config.hidden_size // heads) ** -0.5
    norms = [norm_weights(tree[name], config.layer_norm_eps) for name in ("attention_norm", "mlp_norm")]
    return LayerWeights(_attention(arrays, parts["output"], heads, scale), norms[0], norms[1])


def _gpt2_layer(tree: Params, config: GPT2Config, index: int) -> LayerWeights:
    heads, parts = config.n_head, tree["attention"]
    arrays: list[Array] = []
    for kernel, bias in zip(*(jnp.split(parts["qkv"][name], 3, axis=-1) for name in ("kernel", "bias")), strict=True):
        arrays += _split(kernel, bias, heads)
    scale = (config.hidden_size // heads) ** -0.5 if config.scale_attn_weights else 1.0
    scale = scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale
    norms = [norm_weights(tree[name], config.layer_norm_epsilon) for name in ("attention_norm", "mlp_norm")]
    return LayerWeights(_attention(arrays, parts["output"], heads, scale), norms[0], norms[1], pre_norm=True)


def _split(kernel: Float[Array, "d k"], bias: Float[Array, " k"], heads: int) -> list[Array]:
    return [kernel.reshape(kernel.shape[0], heads, -1), bias.reshape(heads, -1)]


def _attention(arrays: list[Array], output: Params, heads: int, scale: float) -> AttentionWeights:
    kernel = output["kernel"].reshape(heads, -1, output["kernel"].shape[1])
    names = ("query", "query_bias", "key", "key_bias", "value", "value_bias")
    return AttentionWeights(
        **dict(zip(names, arrays, strict=True)), output=kernel, output_bias=output["bias"], scale=scale
    )
