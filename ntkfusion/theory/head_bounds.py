"""How far what is behind the last layer can move: pooler, classifiers and language models, per logit.

With ‖h_t − h̃_t‖ ≤ ε_t a linear map moves its output c by ‖w_c‖ ε, w_c the c-th column. An elementwise increasing or
Lipschitz function between two maps moves its i-th value by at most κ_i (what it can do to a shift of ‖w_i‖ ε), hence
the next output by at most min(‖w_c‖ min(‖κ‖, L ‖W‖ ε), Σ_i |w_ic| κ_i). Source: own derivation.
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
from ntkfusion.theory.constants import constants
from ntkfusion.theory.layer_norm_bound import norm_change
from ntkfusion.theory.majorants import value_majorant
from ntkfusion.theory.network_weights import norm_weights
from ntkfusion.theory.spectral import spectral_bound

Params = Mapping[str, Any]


@pytree
class Moved:
    """Values with bounds of their changes.

    Attributes:
        value: what is known.
        each: bounds entry by entry.
        norm: a bound of the norm.
    """

    value: Float[Array, "*batch k"]
    each: Float[Array, "*batch k"]
    norm: Float[Array, "*batch"]


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
    config: EncoderConfig | GPT2Config, params: Params, h: Float[Array, "B T d"], eps: Float[Array, "B T"], last: Any
) -> HeadBound:
    """The bounds behind the last layer.

    Args:
        config: says which head there is.
        params: of the model.
        h: the compressed model's last hidden states.
        eps: bounds of their distance from the original's.
        last: the token that a decoder's sequence classification reads, [B].

    Returns:
        The `HeadBound`.
    """
    moved = _exactly(h, eps)
    if isinstance(config, GPT2Config):
        return HeadBound(logits=_gpt2_logits(config, params, moved, last))
    first = _exactly(h[:, 0], eps[:, 0])
    pooled = _tanh(params["pooler"], first) if config.add_pooler else None
    logits: Array | None = None
    match config.head:
        case "masked-lm":
            logits = _masked_lm(config, params, moved)
        case "question-answering":
            logits = _linear(params["qa_outputs"]["kernel"], moved)
        case "token-classification":
            logits = _linear(params["classifier"]["kernel"], moved)
        case "sequence-classification" if pooled is not None:
            logits = _linear(params["classifier"]["kernel"], pooled)
        case "sequence-classification":
            parts = params["classifier"]
            logits = _linear(parts["output"]["kernel"], _tanh(parts["dense"], first))
        case _:
            pass
    return HeadBound(None if pooled is None else pooled.norm, logits)


def _exactly(value: Float[Array, "*batch k"], norm: Float[Array, "*batch"]) -> Moved:
    return Moved(value, jnp.broadcast_to(norm[..., None], value.shape), norm)


def _row(v: Float[Array, " k"], like: Float[Array, "*batch"]) -> Float[Array, "*ones k"]:
    return v.reshape((1,) * like.ndim + v.shape)


def _linear(kernel: Float[Array, "d C"], moved: Moved) -> Float[Array, "*batch C"]:
    """min(‖w_c‖ ‖δ‖, Σ_i |w_ic| |δ_i|)."""
    whole = _row(jnp.linalg.norm(kernel, axis=0), moved.norm) * moved.norm[..., None]
    return jnp.minimum(whole, moved.each @ jnp.abs(kernel))


def _dense(parts: Params, moved: Moved) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch k"]]:
    return moved.value @ parts["kernel"] + _row(parts["bias"], moved.norm), _linear(parts["kernel"], moved)


def _tanh(parts: Params, moved: Moved) -> Moved:
    """Tanh rises: the ends of the interval are the worst."""
    a, reach = _dense(parts, moved)
    value = jnp.tanh(a)
    each = jnp.maximum(jnp.tanh(a + reach) - value, value - jnp.tanh(a - reach))
    whole = spectral_bound(parts["kernel"]) * moved.norm
    return Moved(value, each, jnp.minimum(jnp.linalg.norm(each, axis=-1), whole))


def _masked_lm(config: EncoderConfig, params: Params, moved: Moved) -> Float[Array, "B T V"]:
    head, name = params["lm_head"], config.lm_activation
    a, reach = _dense(head["dense"], moved)
    each = jnp.maximum(*(value_majorant(name, a, side * reach) for side in (1.0, -1.0)))
    whole = constants(name).l1 * spectral_bound(head["dense"]["kernel"]) * moved.norm
    norm = jnp.minimum(jnp.linalg.norm(each, axis=-1), whole)
    value = get_activation(name).value(a)
    behind = norm_change(norm_weights(head["norm"], config.layer_norm_eps), value, norm)
    words = params["embeddings"]["word"]["embedding"].T if config.tie_word_embeddings else head["decoder"]["kernel"]
    return _linear(words, _exactly(value, behind))


def _gpt2_logits(config: GPT2Config, params: Params, moved: Moved, last: Int[Array, " B"]) -> Array | None:
    match config.head:
        case None:
            return None
        case "causal-lm" if config.tie_word_embeddings:
            return _linear(params["embeddings"]["word"]["embedding"].T, moved)
        case "causal-lm":
            return _linear(params["lm_head"]["kernel"], moved)
        case "sequence-classification":
            rows = jnp.arange(last.shape[0])
            return _linear(params["score"]["kernel"], _exactly(moved.value[rows, last], moved.norm[rows, last]))
        case "question-answering":
            return _linear(params["qa_outputs"]["kernel"], moved)
        case _:
            return _linear(params["classifier"]["kernel"], moved)
