"""How far what is behind the last layer can move: pooler, classifiers and language models, per logit.

A linear map moves logit c by |e·w_c|, w_c its c-th column, for which `ball` has a bound; before it there may be tanh
(the pooler) or an activation and a LayerNorm (masked language models). tanh rises, so that the ends of an interval are
the worst, and |tanh''| ≤ 4/(3√3). Source: own derivation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.activations import get_activation
from ntkfusion.models.encoder_config import EncoderConfig
from ntkfusion.models.gpt2_config import GPT2Config
from ntkfusion.models.pytree import pytree
from ntkfusion.theory.ball import Ball, elementwise_ball, entries, linear_ball, norm_ball
from ntkfusion.theory.constants import constants
from ntkfusion.theory.derivatives import derivatives
from ntkfusion.theory.majorants import remainder_majorant, value_majorant
from ntkfusion.theory.network_weights import norm_weights

Params = Mapping[str, Any]
#: At least ½ sup |tanh''| = 2/(3√3).
_HALF_CURVE = 0.3849002


@pytree
class HeadBound:
    """Bounds behind the last layer; None for what the model does not have.

    Attributes:
        pooler_output: of the norm of the pooled vector's change, [B].
        logits: of the change of every logit.
    """

    pooler_output: Float[Array, " B"] | None = None
    logits: Float[Array, "B *out"] | None = None


def head_bound(
    config: EncoderConfig | GPT2Config,
    params: Params,
    h: Float[Array, "B T d"],
    ball: Ball,
    last: Int[Array, " B"] | None,
) -> HeadBound:
    """The bounds behind the last layer.

    Args:
        config: says which head there is.
        params: of the model.
        h: the compressed model's last hidden states.
        ball: what is known of their distance from the original's.
        last: the token that a decoder's sequence classification reads.

    Returns:
        The `HeadBound`.
    """
    if isinstance(config, GPT2Config):
        return HeadBound(logits=_gpt2_logits(config, params, ball, last))
    first, pooled = (h[:, 0], ball.where((slice(None), 0))), None
    if config.add_pooler:
        pooled = _tanh(params["pooler"], *first)
    logits: Array | None = None
    match config.head:
        case "masked-lm":
            logits = _masked_lm(config, params, h, ball)
        case "question-answering":
            logits = entries(params["qa_outputs"]["kernel"], ball)
        case "token-classification":
            logits = entries(params["classifier"]["kernel"], ball)
        case "sequence-classification" if pooled is not None:
            logits = entries(params["classifier"]["kernel"], pooled)
        case "sequence-classification":
            parts = params["classifier"]
            logits = entries(parts["output"]["kernel"], _tanh(parts["dense"], *first))
        case _:
            pass
    return HeadBound(None if pooled is None else pooled.eps, logits)


def _dense(parts: Params, h: Float[Array, "*batch d"]) -> Float[Array, "*batch k"]:
    return h @ parts["kernel"] + parts["bias"].reshape((1,) * (h.ndim - 1) + parts["bias"].shape)


def _tanh(parts: Params, h: Float[Array, "*batch d"], ball: Ball) -> Ball:
    a, reach = _dense(parts, h), entries(parts["kernel"], ball)
    value = jnp.tanh(a)
    change = jnp.maximum(jnp.tanh(a + reach) - value, value - jnp.tanh(a - reach))
    behind = linear_ball(parts["kernel"], ball)
    return elementwise_ball(behind, 1 - value * value, 1.0, change, _HALF_CURVE * reach * reach)


def _masked_lm(config: EncoderConfig, params: Params, h: Float[Array, "B T d"], ball: Ball) -> Float[Array, "B T V"]:
    head, name = params["lm_head"], config.lm_activation
    a, reach = _dense(head["dense"], h), entries(head["dense"]["kernel"], ball)
    change, rest = (
        jnp.maximum(majorant(name, a, reach), majorant(name, a, -reach))
        for majorant in (value_majorant, remainder_majorant)
    )
    behind = linear_ball(head["dense"]["kernel"], ball)
    behind = elementwise_ball(behind, derivatives(name).first(a), constants(name).l1, change, rest)
    behind = norm_ball(norm_weights(head["norm"], config.layer_norm_eps), get_activation(name).value(a), behind)
    words = params["embeddings"]["word"]["embedding"].T if config.tie_word_embeddings else head["decoder"]["kernel"]
    return entries(words, behind)


def _gpt2_logits(config: GPT2Config, params: Params, ball: Ball, last: Int[Array, " B"] | None) -> Array | None:
    match config.head:
        case None:
            return None
        case "causal-lm" if config.tie_word_embeddings:
            return entries(params["embeddings"]["word"]["embedding"].T, ball)
        case "causal-lm":
            return entries(params["lm_head"]["kernel"], ball)
        case "sequence-classification" if last is not None:
            return entries(params["score"]["kernel"], ball.where((jnp.arange(last.shape[0]), last)))
        case "question-answering":
            return entries(params["qa_outputs"]["kernel"], ball)
        case _:
            return entries(params["classifier"]["kernel"], ball)
