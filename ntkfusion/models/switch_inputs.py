"""What a Switch Transformer's decoder reads, what its attention sees, and where its classification head looks."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch


def decoder_tokens(batch: Batch, start: int | None) -> tuple[Int[Array, "B U"], Int[Array, "B U"]]:
    """Ids that the decoder reads, and 1 where they are tokens.

    By default they are the encoder's, shifted to the right behind the start token, which drops the last one. The mask
    is shifted with them and begins with 1: padding stays hidden, the start token is seen.

    Raises:
        InputError: if there is nothing to shift.
    """
    ids, mask = batch.decoder_input_ids, batch.decoder_attention_mask
    if ids is not None:
        return ids, jnp.ones(ids.shape, jnp.int32) if mask is None else mask
    if batch.input_ids is None:
        raise InputError("give decoder_input_ids with inputs_embeds: there are no input_ids to take them from")
    if start is None:
        raise InputError("give decoder_input_ids: config.json has neither decoder_start_token_id nor pad_token_id")
    shifted = _shifted(batch.input_ids, start)
    return shifted, _shifted(batch.attention_mask, 1) if mask is None else mask


def _shifted(values: Int[Array, "B T"], first: int) -> Int[Array, "B T"]:
    start = jnp.full((values.shape[0], 1), first, values.dtype)
    return jnp.concatenate([start, values[:, :-1]], axis=1)


def hiding(tokens: Int[Array, "B k"], dtype: jnp.dtype, *, causal: bool = False) -> Float[Array, "B 1 #k k"]:
    """What is added to scores: 0 at tokens, very negative elsewhere and, if causal, at later positions."""
    seen = tokens[:, None, None, :] > 0
    if causal:
        length = tokens.shape[1]
        seen = seen & jnp.tril(jnp.ones((1, 1, length, length), bool))
    return jnp.where(seen, jnp.zeros((), dtype), jnp.finfo(dtype).min)


def last_eos(ids: Int[Array, "B T"], mask: Int[Array, "B T"], eos: int | None) -> Int[Array, " B"]:
    """The position of the last EOS token of every sequence; of the last token where there is none."""
    places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None, :], ids.shape)
    last_token = jnp.max(jnp.where(mask > 0, places, 0), axis=1)
    if eos is None:
        return last_token
    found = jnp.max(jnp.where((ids == eos) & (mask > 0), places, -1), axis=1)
    return jnp.where(found >= 0, found, last_token)
