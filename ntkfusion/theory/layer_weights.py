"""The weights of one transformer layer around its MLP block, as plain arrays, and the layer as a plain function.

Shapes: B batch, T tokens, d model width, H heads, e width of a head. Post-norm (BERT) and pre-norm (GPT-2):

    post   z = h + A(h)         u = LN1(z)    y = u + f(u)    h' = LN2(y)
    pre    z = h + A(LN1(h))    u = LN2(z)    y = z + f(u)    h' = y
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.pytree import pytree, static
from ntkfusion.theory.layer_norm_bound import NormWeights, normalise


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
