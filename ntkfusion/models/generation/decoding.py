"""One token after the other with a cache of keys and values: greedy search and beam search.

Greedy search takes the likeliest token, again and again. Beam search continues the K likeliest beginnings side by
side, and keeps the best endings.

A continuation of n tokens (its end included) is scored by the sum of its log probabilities, divided by n to the power
of the length penalty. The rules are those of transformers' ``generate``: of the 2K best candidates (more if there are
several end tokens) those that end join the finished ones if they are among the best K, and the best K others are
continued. A prompt is done when its best unfinished beginning, scored as if it ended now, is worse than all K that are
finished; with early stopping as soon as K are finished.

Shapes: B prompts, T tokens of a prompt, R rows that are continued (prompts, or beams of prompts), K beams, C
candidates, V words, n new tokens.
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


#: The score of what does not exist: far below every real one, and finite, so that differences stay numbers.
_NEVER = -1e9


class Rules(NamedTuple):
    """How a search ends: end tokens, the power of the length, and whether K endings are enough."""

    eos: Int[Array, " E"]
    length_penalty: Float[Array, ""]
    early_stopping: Bool[Array, ""]


class _Beams(NamedTuple):
    """K sequences per prompt, best first."""

    tokens: Int[Array, "B K n"]
    scores: Float[Array, "B K"]

    def best(self, count: int) -> tuple[_Beams, Int[Array, "B K2"]]:
        """The best `count` and where they were."""
        scores, order = lax.top_k(self.scores, count)
        return _Beams(jnp.take_along_axis(self.tokens, order[:, :, None], axis=1), scores), order

    @property
    def full(self) -> Bool[Array, " B"]:
        """Whether all K exist."""
        return jnp.all(self.scores > _NEVER / 2, axis=1)


class _BeamState(NamedTuple):
    step: Int[Array, ""]
    running: _Beams
    finished: _Beams
    hopeful: Bool[Array, " B"]
    memory: Memory


class _Candidates(NamedTuple):
    beams: _Beams
    parents: Int[Array, "B C"]
    ended: Bool[Array, "B C"]


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "num_beams"))
def beam_search(
    config: GPT2Config,
    weights: Weights,
    ids: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    pad: Int[Array, ""],
    rules: Rules,
    *,
    max_new_tokens: int,
    num_beams: int,
) -> Int[Array, "B n"]:
    """The best continuation of every prompt that beam search finds.

    Args:
        config: a language model's.
        weights: its arrays.
        ids: the prompts, padded on the left.
        mask: 1 for tokens, 0 for padding.
        pad: what stands behind the end.
        rules: how the search ends.
        max_new_tokens: n, the length of the continuations.
        num_beams: K.

    Returns:
        The continuations.
    """
    batch = ids.shape[0]
    logits, memory = read_prompt(config, weights, ids, mask, capacity=ids.shape[1] + max_new_tokens - 1)
    copies = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), num_beams)
    none = jnp.full((batch, num_beams), _NEVER, logits.dtype)
    blank = jnp.full((batch, num_beams, max_new_tokens), pad, jnp.int32)
    running = _Beams(blank, none.at[:, 0].set(0.0))  # the beams of a prompt are still the same: one is enough
    start = jnp.zeros((), jnp.int32)
    state = _BeamState(start, running, _Beams(blank, none), jnp.ones(batch, bool), memory.rows(copies))

    def go_on(state: _BeamState) -> _BeamState:
        last = state.running.tokens[:, :, state.step - 1].reshape(-1)
        logits, memory = read_token(config, weights, last, state.memory)
        return _choose(state._replace(memory=memory), logits, rules)

    def unfinished(state: _BeamState) -> Bool[Array, ""]:
        enough = rules.early_stopping & state.finished.full.all()
        return (state.step < max_new_tokens) & state.hopeful.any() & ~enough

    return lax.while_loop(unfinished, go_on, _choose(state, logits[copies], rules)).finished.tokens[:, 0]


def _choose(state: _BeamState, logits: Float[Array, "R V"], rules: Rules) -> _BeamState:
    """One step: the beams that go on and those that are finished."""
    batch, beams = state.running.scores.shape
    found = _candidates(state, logits, rules)
    length = (state.step + 1).astype(logits.dtype) ** rules.length_penalty
    finished = _finished(state, found, length, rules)
    going_on = found.beams._replace(scores=found.beams.scores + jnp.where(found.ended, _NEVER, 0.0))
    running, order = going_on.best(beams)
    parents = jnp.take_along_axis(found.parents, order, axis=1)
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None] * beams + parents
    hopeful = state.hopeful & (running.scores[:, 0] / length > finished.scores.min(axis=1))
    return _BeamState(state.step + 1, running, finished, hopeful, state.memory.rows(rows.reshape(-1)))


def _candidates(state: _BeamState, logits: Float[Array, "R V"], rules: Rules) -> _Candidates:
    """The likeliest continuations by one token, enough of them that K do not end."""
    batch, beams, length = state.running.tokens.shape
    words = logits.shape[-1]
    count = max(2, 1 + rules.eos.size) * beams
    scores = jax.nn.log_softmax(logits).reshape(batch, beams, words) + state.running.scores[:, :, None]
    best, index = lax.top_k(scores.reshape(batch, beams * words), count)
    parents, token = index // words, index % words
    tokens = jnp.take_along_axis(state.running.tokens, parents[:, :, None], axis=1)
    tokens = tokens.at[:, :, state.step].set(token.astype(jnp.int32))
    ended = jnp.isin(token, rules.eos) | (state.step + 1 == length)
    return _Candidates(_Beams(tokens, best), parents, ended)


def _finished(state: _BeamState, found: _Candidates, length: Float[Array, ""], rules: Rules) -> _Beams:
    """The best K of what was finished and what ends now."""
    beams = state.finished.scores.shape[1]
    closed = ~state.hopeful | (rules.early_stopping & state.finished.full)
    accepted = found.ended & (jnp.arange(found.ended.shape[1]) < beams)[None, :] & ~closed[:, None]
    scores = jnp.where(accepted, found.beams.scores / length, _NEVER)
    tokens = jnp.concatenate([state.finished.tokens, found.beams.tokens], axis=1)
    return _Beams(tokens, jnp.concatenate([state.finished.scores, scores], axis=1)).best(beams)[0]
