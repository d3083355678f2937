"""Texts as the arrays that a network reads, whatever its tokenizer lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from ntkfusion.data.block_inputs import tokenizer_output
from ntkfusion.errors import InputError
from ntkfusion.models.indices import padding_id
from ntkfusion.models.model import Model

Side = Literal["right", "left"]


def text_batch(
    model: Model, texts: Iterable[str], *, max_length: int | None = None, side: Side = "right"
) -> dict[str, Int[np.ndarray, "B T"]]:
    """Texts as one batch, padded to the longest: ``model.apply(model.params, **text_batch(model, texts))``.

    A tokenizer without padding token (GPT-2's) is no obstacle: its end-of-text token fills up, and the mask hides it.

    Args:
        model: a model with a tokenizer.
        texts: the texts.
        max_length: longer ones are cut to so many tokens, special ones included; by default to the model's positions.
        side: where padding goes; `generate` needs it on the left.

    Returns:
        ``input_ids`` and ``attention_mask``, int32.

    Raises:
        InputError: if the model has no tokenizer, or for what is no text.
    """
    if side not in get_args(Side):
        raise InputError(f"side must be one of {', '.join(get_args(Side))}, got {side!r}")
    # as much as tokenizers understand; the model's positions are taken off there
    most = sys.maxsize if max_length is None else max_length
    rows = tokenizer_output(model, texts, max_length=min(most, 2**31 - 1))["input_ids"]
    padding = padding_id(model.config, model.tokenizer, model.origin.config) or 0
    ids = np.full((len(rows), max([1, *map(len, rows)])), padding, np.int32)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[place, columns], mask[place, columns] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
