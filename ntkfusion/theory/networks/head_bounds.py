"""How far what is behind the last layer can move: pooler, classifiers and language models, per logit.

A linear map moves logit c by |e·w_c|, w_c its c-th column, for which `ball` has a bound; before it there may be tanh
(the pooler) or an activation and a LayerNorm (masked language models). tanh rises, so that the ends of an interval are
the worst, and |tanh''| ≤ 4/(3√3).

Rounding: a computed h·w_c + b_c is (h + e)·w_c + b_c + e_c with ‖e‖ ≤ Γ ‖h‖, |e_c| ≤ Γ |b_c|; both networks' e and that
of D·w_c make the ball in front of every linear map larger by 4 Γ (‖h‖ + ε). Source: own derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.activations import get_activation
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.layers.encoder_config import EncoderConfig
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.majorants import remainder_majorant, value_majorant
from ntkfusion.theory.activations.suprema import suprema
from ntkfusion.theory.networks.layer_norm_bound import (
    Ball,
    NormWeights,
    elementwise_ball,
    entries,
    linear_ball,
    norm_ball,
    normalise,
)
from ntkfusion.theory.networks.network_rounding import norm_rounding
from ntkfusion.theory.networks.network_weights import norm_weights
from ntkfusion.utils.parameter_paths import Params
from ntkfusion.utils.pytrees import pytree

#: What the compressed model computed, and what is known of its distance from the original's.
State = tuple[Float[Array, "*batch d"], Ball]

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
    unit: float,
) -> HeadBound:
    """The bounds behind the last layer.

    Args:
        config: says which head there is.
        params: of the model.
        h: the compressed model's last hidden states.
        ball: what is known of their distance from the original's.
        last: the token that a decoder's sequence classification reads.
        unit: Γ of float64; 0 for real arithmetic.

    Returns:
        The `HeadBound`.
    """
    if isinstance(config, GPT2Config):
        return HeadBound(logits=_gpt2_logits(config, params, (h, ball), last, unit))
    first, pooled = (h[:, 0], ball.where((slice(None), 0))), None
    if config.add_pooler:
        pooled = _tanh(params["pooler"], first, unit)
    logits: Array | None = None
    match config.head:
        case "masked-lm":
            logits = _masked_lm(config, params, (h, ball), unit)
        case "question-answering":
            logits = _moved(params["qa_outputs"], (h, ball), unit)
        case "token-classification":
            logits = _moved(params["classifier"], (h, ball), unit)
        case "sequence-classification" if pooled is not None:
            logits = _moved(params["classifier"], pooled, unit)
        case "sequence-classification":
            parts = params["classifier"]
            logits = _moved(parts["output"], _tanh(parts["dense"], first, unit), unit)
        case _:
            pass
    return HeadBound(None if pooled is None else pooled[1].eps, logits)


def widened(state: State, unit: float) -> Ball:
    """The ball with what float64 makes of a linear map behind it."""
    h, ball = state
    room = 4 * unit * (jnp.linalg.norm(h, axis=-1) + ball.eps)
    return Ball(ball.direction, ball.radius + room, ball.eps + room)


def _moved(parts: Params, state: State, unit: float) -> Float[Array, "*batch k"]:
    """Bounds of what a linear map with or without bias makes of a difference."""
    found = entries(parts["kernel"], widened(state, unit))
    return found + 2 * unit * jnp.max(jnp.abs(parts["bias"])) if "bias" in parts else found


def _dense(parts: Params, h: Float[Array, "*batch d"]) -> Float[Array, "*batch k"]:
    return h @ parts["kernel"] + parts["bias"].reshape((1,) * (h.ndim - 1) + parts["bias"].shape)


def _tanh(parts: Params, state: State, unit: float) -> State:
    a, reach = _dense(parts, state[0]), _moved(parts, state, unit)
    value = jnp.tanh(a)
    change = jnp.maximum(jnp.tanh(a + reach) - value, value - jnp.tanh(a - reach))
    behind = _behind(parts, state, unit)
    found = elementwise_ball(behind, 1 - value * value, 1.0, change, _HALF_CURVE * reach * reach)
    # of tanh itself, a few units of 1
    room = 4 * unit * value.shape[-1] ** 0.5
    return value, Ball(found.direction, found.radius + room, found.eps + room)


def _behind(parts: Params, state: State, unit: float) -> Ball:
    """The ball behind a linear map."""
    found = linear_ball(parts["kernel"], widened(state, unit))
    room = 2 * unit * jnp.linalg.norm(parts["bias"])
    return Ball(found.direction, found.radius + room, found.eps + room)


def _masked_lm(config: EncoderConfig, params: Params, state: State, unit: float) -> Float[Array, "B T V"]:
    head, name = params["lm_head"], config.lm_activation
    a, reach = _dense(head["dense"], state[0]), _moved(head["dense"], state, unit)
    change, rest = (
        jnp.maximum(majorant(name, a, reach), majorant(name, a, -reach))
        for majorant in (value_majorant, remainder_majorant)
    )
    behind = _behind(head["dense"], state, unit)
    behind = elementwise_ball(behind, derivatives(name).first(a), suprema(name).l1, change, rest)
    value = get_activation(name).value(a)
    # of the activation, |σ(h)| ≤ |h|, and of the centring behind it
    room = 8 * unit * (jnp.linalg.norm(a, axis=-1) + behind.eps)
    behind = Ball(behind.direction, behind.radius + room, behind.eps + room)
    state = normed(norm_weights(head["norm"], config.layer_norm_eps), (value, behind), unit)
    if config.tie_word_embeddings:
        return _moved({"kernel": params["embeddings"]["word"]["embedding"].T, "bias": head["bias"]}, state, unit)
    return _moved(head["decoder"], state, unit)


def normed(norm: NormWeights, state: State, unit: float) -> State:
    """A LayerNorm behind what is known, its centring allowed for already."""
    h, found = state[0], norm_ball(norm, *state)
    room = norm_rounding(norm, h, 2 * state[1].eps, unit)
    return normalise(norm, h), Ball(found.direction, found.radius + room, found.eps + room)


def _gpt2_logits(
    config: GPT2Config, params: Params, state: State, last: Int[Array, " B"] | None, unit: float
) -> Array | None:
    match config.head:
        case None:
            return None
        case "causal-lm" if config.tie_word_embeddings:
            return _moved({"kernel": params["embeddings"]["word"]["embedding"].T}, state, unit)
        case "causal-lm":
            return _moved(params["lm_head"], state, unit)
        case "sequence-classification" if last is not None:
            index = (jnp.arange(last.shape[0]), last)
            return _moved(params["score"], (state[0][index], state[1].where(index)), unit)
        case "question-answering":
            return _moved(params["qa_outputs"], state, unit)
        case _:
            return _moved(params["classifier"], state, unit)
