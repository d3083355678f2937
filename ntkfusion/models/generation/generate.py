"""Text from a language model: `generate`, and the checks of what it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ntkfusion.errors import InputError
from ntkfusion.models.generation.decoding import Rules, Weights, beam_search, greedy_search
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.model import ArrayLike, Model


def generate(
    model: Model,
    input_ids: Int[ArrayLike, "B T"],
    attention_mask: Int[ArrayLike, "_ _"] | None = None,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
) -> Int[Array, "B L"]:
    """Continue prompts by greedy search (one beam) or beam search, with a cache of keys and values.

    The tokens are those of transformers' ``generate`` without sampling. Compiled once per shape and number of beams.

    Args:
        model: a decoder with the head ``"causal-lm"``.
        input_ids: the prompts; shorter ones padded on the left.
        attention_mask: 1 for tokens, 0 for padding; by default all tokens.
        max_new_tokens: how many tokens are added.
        num_beams: beginnings that are continued side by side; 1 for greedy search.
        eos_token_id: the token, or tokens, that end a continuation; by default none does.
        pad_token_id: what stands behind an end; by default the configuration's, or else the first end token.
        length_penalty: of beam search: scores are divided by the length to this power.
        early_stopping: of beam search: whether a prompt is done as soon as `num_beams` continuations have ended.

    Returns:
        [B, T + max_new_tokens]: prompts and continuations.

    Raises:
        InputError: for a model without such a head, a value out of range, or prompts that are empty, not padded on the
            left, outside the vocabulary, or too long for the positions of the model.
    """
    config = _language_model(model)
    ends = _end_tokens(eos_token_id, config)
    _check_options(max_new_tokens, num_beams, length_penalty)
    prompts, mask = _checked_prompts(input_ids, attention_mask, config, max_new_tokens)
    pad = jnp.asarray(_padding(pad_token_id, ends, config), jnp.int32)
    # a token that does not exist stands for no end: one program for both
    weights, eos = Weights(model.params, model.constants), jnp.asarray(ends or (-1,), jnp.int32)
    if num_beams == 1:
        new = greedy_search(config, weights, prompts, mask, eos, pad, max_new_tokens=max_new_tokens)
    else:
        rules = Rules(eos, jnp.asarray(length_penalty, weights.dtype), jnp.asarray(early_stopping, bool))
        sizes = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        new = beam_search(config, weights, prompts, mask, pad, rules, **sizes)
    return jnp.concatenate([prompts, new], axis=1)


def _language_model(model: Model) -> GPT2Config:
    config = model.config
    if not isinstance(config, GPT2Config) or config.head != "causal-lm":
        raise InputError(
            f"generate needs a decoder with the head 'causal-lm' (GPT-2); this is {config.architecture} with "
            f"{f'the head {config.head!r}' if config.head else 'no head'}. Load it with head='causal-lm' if it has one."
        )
    return config


def _end_tokens(eos: int | Sequence[int] | None, config: GPT2Config) -> tuple[int, ...]:
    given = () if eos is None else (eos,) if isinstance(eos, int) else tuple(dict.fromkeys(eos))
    for token in given:
        if not 0 <= token < config.vocab_size:
            raise InputError(f"eos_token_id must be from 0 to {config.vocab_size - 1}, got {token}")
    if len(given) >= config.vocab_size:
        raise InputError("every word of the vocabulary is an end token; nothing can be generated")
    return given


def _padding(pad: int | None, ends: tuple[int, ...], config: GPT2Config) -> int:
    """What stands behind an end: it is read again, and so a row of the embedding."""
    if pad is not None and not 0 <= pad < config.vocab_size:
        raise InputError(f"pad_token_id must be from 0 to {config.vocab_size - 1}, got {pad}")
    known = config.pad_token_id if pad is None else pad
    return known if known is not None and 0 <= known < config.vocab_size else next(iter(ends), 0)


def _check_options(max_new_tokens: int, num_beams: int, length_penalty: float) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not math.isfinite(length_penalty):
        raise InputError(f"length_penalty must be a finite number, got {length_penalty}")


def _checked_prompts(
    input_ids: ArrayLike, attention_mask: ArrayLike | None, config: GPT2Config, max_new_tokens: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    ids = np.asarray(input_ids)
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    if ids.size == 0:
        raise InputError(f"the prompts have shape {ids.shape}; give at least one token")
    if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
        raise InputError(f"attention_mask must be 0 or 1 with the shape {ids.shape} of the prompts, got {mask.shape}")
    if not mask[:, -1].all():
        raise InputError(
            "a prompt ends in padding; pad on the left (nf.text_batch(model, texts, side='left'), or "
            "tokenizer.padding_side = 'left')"
        )
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError(f"token ids must be from 0 to {config.vocab_size - 1}, got {ids.min()} to {ids.max()}")
    longest = int(mask.sum(axis=1).max())
    # the last token that is generated is never read
    if longest + max_new_tokens - 1 > config.n_positions:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit into {config.n_positions} "
            "positions; shorten the prompt or ask for fewer"
        )
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32)
