"""Beam search: the K likeliest beginnings are continued side by side, and the best endings kept.

A continuation of n tokens (its end included) is scored by the sum of its log probabilities, divided by n to the power
of the length penalty. The rules are those of transformers' ``generate``: of the 2K best candidates (more if there are
several end tokens) those that end join the finished ones if they are among the best K, and the best K others are
continued. A prompt is done when its best unfinished beginning, scored as if it ended now, is worse than all K that are
finished; with early stopping as soon as K are finished.

Shapes: B prompts, K beams, C candidates, V words, n new tokens.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.models.generation.decoding import Memory, Weights, read_prompt, read_token
from ntkfusion.models.gpt2.config import GPT2Config

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
