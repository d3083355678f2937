"""What may be handed to a network: whole numbers in rectangles that fit each other; all else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from ntkfusion.errors import InputError
from ntkfusion.models.config import ModelConfig

#: A name → the array that a caller gave by it.
Given: TypeAlias = Mapping[str, object]

#: What every array is like, for messages.
_WANTED = {
    "input_ids": "token ids, whole numbers [B, T]",
    "inputs_embeds": "word embeddings, floating-point numbers [B, T, d]",
    "attention_mask": "1 for tokens and 0 for padding, whole numbers or booleans [B, T]",
    "token_type_ids": "segments, whole numbers [B, T]",
    "position_ids": "positions, whole numbers [B, T]",
    "decoder_input_ids": "token ids, whole numbers [B, U]",
    "decoder_attention_mask": "1 for tokens and 0 for padding, whole numbers or booleans [B, U]",
}

_MASKS = ("attention_mask", "decoder_attention_mask")


def checked_inputs(given: Given, config: ModelConfig) -> dict[str, Array]:
    """The arrays that a network reads, each of the right kind and as large as the others.

    Args:
        given: name → array, or nested lists; what is None is left out.
        config: the architecture.

    Returns:
        JAX arrays by the same names; masks as int32.

    Raises:
        InputError: for anything else, saying what came and what was expected.
    """
    arrays = {name: _array(name, values) for name, values in given.items() if values is not None}
    kinds = [name for name in ("input_ids", "inputs_embeds") if name in arrays]
    if len(kinds) != 1:
        raise InputError("give exactly one of input_ids and inputs_embeds")
    shape = arrays[kinds[0]].shape[:2]
    for name in ("attention_mask", "token_type_ids", "position_ids"):
        # one row of positions for all sequences, as transformers has it
        rows = {shape, (1, shape[1])} if name == "position_ids" else {shape}
        _check_shape(name, arrays, rows, kinds[0])
    if "position_ids" in arrays:
        arrays["position_ids"] = jnp.broadcast_to(arrays["position_ids"], shape)
    if "decoder_input_ids" in arrays:
        length = arrays["decoder_input_ids"].shape[1]
        _check_shape("decoder_input_ids", arrays, {(shape[0], length)}, kinds[0])
        _check_shape("decoder_attention_mask", arrays, {(shape[0], length)}, "decoder_input_ids")
    elif "decoder_attention_mask" in arrays:
        _check_shape("decoder_attention_mask", arrays, {shape}, kinds[0])
    if config.max_length is not None and shape[1] > config.max_length:
        raise InputError(
            f"inputs are {shape[1]} tokens long; this model has {config.max_length} positions. Truncate them."
        )
    return arrays


def _array(name: str, values: object) -> Array:
    """One array of the right kind and number of axes."""
    wanted = f"{name} must be {_WANTED.get(name, 'an array')}"
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{wanted}; got what is no such array ({_first_line(error)}): pad texts to one length, as `nf.text_batch` "
            "does"
        ) from error
    floats = name == "inputs_embeds"
    if array.ndim != 2 + floats:
        hint = f"; one sequence alone is {name}[None]" if array.ndim == 1 + floats else ""
        raise InputError(f"{wanted}; got shape {array.shape}{hint}")
    if 0 in array.shape:
        raise InputError(f"{wanted}, at least one of each; got shape {array.shape}")
    if name in _MASKS and array.dtype == bool:
        return array.astype(jnp.int32)
    if not jnp.issubdtype(array.dtype, jnp.floating if floats else jnp.integer):
        hint = "" if floats else f": {name}.astype(int) if they are whole"
        raise InputError(f"{wanted}; got {array.dtype}{hint}")
    return array


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _check_shape(name: str, arrays: Mapping[str, Array], allowed: set[tuple[int, ...]], like: str) -> None:
    if name in arrays and arrays[name].shape not in allowed:
        expected = " or ".join(map(str, sorted(allowed)))
        raise InputError(
            f"{name} has shape {arrays[name].shape}, but {like} asks for {expected}: give one for every token of the "
            "same padded batch"
        )
