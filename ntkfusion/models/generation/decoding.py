"""One token after the other with a cache of keys and values, and greedy search: the likeliest token, again and again.

Shapes: B prompts, T tokens of a prompt, R rows that are continued (prompts, or beams of prompts), V words, n new
tokens.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.models.batch import Batch
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.gpt2.network import empty_cache
from ntkfusion.models.registry import build_network
from ntkfusion.utils.parameter_paths import Params


class Weights(NamedTuple):
    """The arrays of a model; arguments of every compiled program."""

    params: Params
    constants: Params

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the parameters."""
        return jax.tree.leaves(self.params)[0].dtype


class Memory(NamedTuple):
    """What has been read: the cache, and the position of the next token of every row."""

    cache: Params
    positions: Int[Array, " R"]

    def rows(self, index: Int[Array, " R2"]) -> Memory:
        """The memory of some rows, of which some may be there twice."""
        return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, self)


def read_prompt(
    config: GPT2Config, weights: Weights, ids: Int[Array, "B T"], mask: Int[Array, "B T"], *, capacity: int
) -> tuple[Float[Array, "B V"], Memory]:
    """Read prompts that end in a token each; padding is where the mask is 0.

    Args:
        config: a language model's.
        weights: its arrays.
        ids: the prompts.
        mask: 1 for tokens, 0 for padding.
        capacity: positions that the cache has room for.

    Returns:
        The logits of the next token, and the memory.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    batch = Batch(attention_mask=mask, input_ids=ids, position_ids=positions)
    logits, cache = _run(config, weights, batch, empty_cache(config, ids.shape[0], capacity, weights.dtype))
    return logits, Memory(cache, positions[:, -1] + 1)


def read_token(
    config: GPT2Config, weights: Weights, tokens: Int[Array, " R"], memory: Memory
) -> tuple[Float[Array, "R V"], Memory]:
    """Read one more token per row: the logits of the token behind it, and the memory."""
    ids, positions = tokens[:, None], memory.positions[:, None]
    batch = Batch(attention_mask=jnp.ones_like(ids), input_ids=ids, position_ids=positions)
    logits, cache = _run(config, weights, batch, memory.cache)
    return logits, Memory(cache, memory.positions + 1)


def _run(config: GPT2Config, weights: Weights, batch: Batch, cache: Params) -> tuple[Float[Array, "R V"], Params]:
    variables = {"params": weights.params, "constants": weights.constants, "cache": cache}
    output, state = build_network(config).apply(variables, batch, last_only=True, mutable=["cache"])
    return output.logits[:, 0], dict(state["cache"])


class _GreedyState(NamedTuple):
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

    def choose(state: _GreedyState, logits: Float[Array, "B V"]) -> _GreedyState:
        token = jnp.where(state.ended, pad, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        tokens = state.tokens.at[:, state.step].set(token)
        return _GreedyState(state.step + 1, tokens, state.ended | jnp.isin(token, eos), state.memory)

    def go_on(state: _GreedyState) -> _GreedyState:
        logits, memory = read_token(config, weights, state.tokens[:, state.step - 1], state.memory)
        return choose(state._replace(memory=memory), logits)

    def unfinished(state: _GreedyState) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~state.ended.all()

    batch = ids.shape[0]
    # the last token that is chosen is never read
    logits, memory = read_prompt(config, weights, ids, mask, capacity=ids.shape[1] + max_new_tokens - 1)
    tokens = jnp.full((batch, max_new_tokens), pad, jnp.int32)
    state = choose(_GreedyState(jnp.zeros((), jnp.int32), tokens, jnp.zeros(batch, bool), memory), logits)
    return lax.while_loop(unfinished, go_on, state).tokens
