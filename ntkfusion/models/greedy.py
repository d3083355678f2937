"""Greedy search: the likeliest token, again and again."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.models.decoding import Memory, Weights, read_prompt, read_token
from ntkfusion.models.gpt2_config import GPT2Config


class _State(NamedTuple):
    step: Int[Array, ""]
    tokens: Int[Array, "B n"]
    ended: Bool[Array, " B"]
    memory: Memory


@partial(jax.jit, static_argnames=("config", "max_new_tokens"))
def greedy_search(
    config: GPT2Config,
    weights: Weights,
    ids: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    eos: Int[Array, " E"],
    pad: Int[Array, ""],
    *,
    max_new_tokens: int,
) -> Int[Array, "B n"]:
    """The continuations of prompts, each token the likeliest after those before it.

    Args:
        config: a language model's.
        weights: its arrays.
        ids: the prompts, padded on the left.
        mask: 1 for tokens, 0 for padding.
        eos: tokens that end a continuation.
        pad: what stands behind the end.
        max_new_tokens: n, the length of the continuations.

    Returns:
        The continuations.
    """

    def choose(state: _State, logits: Float[Array, "B V"]) -> _State:
        token = jnp.where(state.ended, pad, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        tokens = state.tokens.at[:, state.step].set(token)
        return _State(state.step + 1, tokens, state.ended | jnp.isin(token, eos), state.memory)

    def go_on(state: _State) -> _State:
        logits, memory = read_token(config, weights, state.tokens[:, state.step - 1], state.memory)
        return choose(state._replace(memory=memory), logits)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~state.ended.all()

    batch = ids.shape[0]
    # the last token that is chosen is never read
    logits, memory = read_prompt(config, weights, ids, mask, capacity=ids.shape[1] + max_new_tokens - 1)
    tokens = jnp.full((batch, max_new_tokens), pad, jnp.int32)
    state = choose(_State(jnp.zeros((), jnp.int32), tokens, jnp.zeros(batch, bool), memory), logits)
    return lax.while_loop(unfinished, go_on, state).tokens
