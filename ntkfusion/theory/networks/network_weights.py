"""A network's layers as plain arrays, and a layer as a plain function: BERT, RoBERTa, ALBERT and GPT-2.

Shapes: B batch, T tokens, d model width, H heads, e width of a head. Around its MLP block f a layer is, post-norm
(BERT) or pre-norm (GPT-2),

    post   z = h + A(h)         u = LN1(z)    y = u + f(u)    h' = LN2(y)
    pre    z = h + A(LN1(h))    u = LN2(z)    y = z + f(u)    h' = y
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.layers.encoder_config import EncoderConfig
from ntkfusion.models.model import Model
from ntkfusion.models.registry import build_network
from ntkfusion.theory.networks.layer_norm_bound import NormWeights, normalise
from ntkfusion.utils.parameter_paths import Params, subtree
from ntkfusion.utils.pytrees import pytree, static


@pytree
class AttentionWeights:
    """Self-attention: A(x)_t = Σ_h Σ_s p^h_ts (x_s W_V^h + b_V^h) W_O^h + b_O, p^h_t = softmax_s(scale q_t·k_s)."""

    query: Float[Array, "d H e"]
    query_bias: Float[Array, "H e"]
    key: Float[Array, "d H e"]
    key_bias: Float[Array, "H e"]
    value: Float[Array, "d H e"]
    value_bias: Float[Array, "H e"]
    output: Float[Array, "H e d"]
    output_bias: Float[Array, " d"]
    scale: float = static(default=1.0)


@pytree
class LayerWeights:
    """What a layer has beside its MLP block."""

    attention: AttentionWeights
    first_norm: NormWeights
    second_norm: NormWeights
    pre_norm: bool = static(default=False)


@pytree
class Attended:
    """What attention computed.

    Attributes:
        query: q, [B, T, H, e]; key and value likewise.
        weights: p, [B, H, T, T].
        out: A(x), [B, T, d].
    """

    query: Float[Array, "B T H e"]
    key: Float[Array, "B T H e"]
    value: Float[Array, "B T H e"]
    weights: Float[Array, "B H T T"]
    out: Float[Array, "B T d"]


@pytree
class LayerTrace:
    """Everything a layer computed.

    Attributes:
        h: its input.
        x: the input of attention: h, or LN1(h).
        attended: the attention.
        z: the sum behind attention.
        u: the MLP block's input.
        y: the sum behind the block.
        out: the layer's output.
    """

    h: Float[Array, "B T d"]
    x: Float[Array, "B T d"]
    attended: Attended
    z: Float[Array, "B T d"]
    u: Float[Array, "B T d"]
    y: Float[Array, "B T d"]
    out: Float[Array, "B T d"]


def run_layer(
    weights: LayerWeights,
    block: Callable[[Float[Array, "B T d"]], Float[Array, "B T d"]],
    h: Float[Array, "B T d"],
    visible: Bool[Array, "B T T"],
) -> LayerTrace:
    """The layer, everything kept.

    Args:
        weights: what is around the block.
        block: the MLP block.
        h: the layer's input.
        visible: who sees whom.

    Returns:
        The `LayerTrace`.
    """
    x = normalise(weights.first_norm, h) if weights.pre_norm else h
    attended = attend(weights.attention, x, visible)
    z = h + attended.out
    u = normalise(weights.second_norm if weights.pre_norm else weights.first_norm, z)
    y = (z if weights.pre_norm else u) + block(u)
    out = y if weights.pre_norm else normalise(weights.second_norm, y)
    return LayerTrace(h, x, attended, z, u, y, out)


def attend(weights: AttentionWeights, x: Float[Array, "B T d"], visible: Bool[Array, "B T T"]) -> Attended:
    """Self-attention, `visible`[b, t, s] saying whether token t may attend to token s."""

    def project(kernel: Float[Array, "d H e"], bias: Float[Array, "H e"]) -> Float[Array, "B T H e"]:
        return jnp.einsum("btd,dhe->bthe", x, kernel) + bias[None, None]

    query = project(weights.query, weights.query_bias)
    key, value = project(weights.key, weights.key_bias), project(weights.value, weights.value_bias)
    scores = jnp.einsum("bthe,bshe->bhts", query, key) * weights.scale
    p = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("bhts,bshe->bthe", p, value)
    out = jnp.einsum("bthe,hed->btd", mixed, weights.output) + weights.output_bias[None, None]
    return Attended(query, key, value, p, out)


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


def embedded(model: Model, batch: Batch) -> Float[Array, "B T d"]:
    """What reaches the first layer."""
    return _embedded(model.config, model.params, model.constants, batch)


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


def _without_blocks(model: Model) -> dict[str, Array]:
    flat = jax.tree_util.tree_flatten_with_path(model.params)[0]
    named = {"/".join(str(key.key) for key in path): leaf for path, leaf in flat}
    return {name: leaf for name, leaf in named.items() if "/mlp/" not in name}


@partial(jax.jit, static_argnames="config")
def _embedded(config: ModelConfig, params: Params, constants: Params, batch: Batch) -> Float[Array, "B T d"]:
    """Compiled: the layers behind, which nobody reads, are left out."""
    wanted = "embedding_map" if "embedding_map" in params else "embeddings"

    def keep(module: Any, method: str) -> bool:
        return module.name == wanted and method == "__call__"

    variables = {"params": params, "constants": constants}
    state: Any = build_network(config).apply(variables, batch, capture_intermediates=keep, mutable=["intermediates"])[1]
    return state["intermediates"][wanted]["__call__"][0]


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
