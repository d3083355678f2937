"""Whole numbers that look up rows of tables, checked before they do; and the token that fills short inputs.

A row that is not there is NaN in JAX, a negative one counts from the end, and a table of one row gives it for every
number: none of them says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from ntkfusion.errors import InputError
from ntkfusion.models.config import JsonObject, ModelConfig

#: The environment variable that lets `Model.apply` look at every index; 0 or nothing lets it not.
CHECK_INDICES = "NTKFUSION_CHECK_INDICES"


#: A number that a compiled program gives to Python.
Scalar: TypeAlias = Int[Array, ""] | Int[np.ndarray, ""]


def indices_are_checked(asked: bool | None = None) -> bool:
    """Whether indices are to be looked at: as was asked for, else as the environment variable says."""
    return os.environ.get(CHECK_INDICES, "0") not in ("", "0") if asked is None else asked


def check_indices(config: ModelConfig, arrays: Mapping[str, Int[Array | np.ndarray, "..."] | None]) -> None:
    """Refuse indices of rows that the tables of a model do not have.

    Inside a compiled program numbers are seen when it runs: the error is then JAX's, with these words in it.

    Args:
        config: of the model.
        arrays: inputs of `Model.apply` by name; what looks up no table is left alone.

    Raises:
        InputError: naming the input, the number and the size of the table.
    """
    for name, rows in config.table_sizes.items():
        indices = arrays.get(name)
        if indices is None or not indices.size:
            continue
        if isinstance(indices, Tracer):
            jax.debug.callback(partial(_check_seen, name, rows), jnp.min(indices), jnp.max(indices))
        else:
            numbers = np.asarray(indices)
            check_range(name, rows, int(numbers.min()), int(numbers.max()))


def _check_seen(name: str, rows: int, lowest: Scalar, highest: Scalar) -> None:
    check_range(name, rows, int(lowest), int(highest))


def check_range(name: str, rows: int, lowest: int, highest: int) -> None:
    """Refuse a lowest and a highest index beyond the rows of a table.

    Raises:
        InputError: naming the input and both.
    """
    if lowest < 0 or highest >= rows:
        raise InputError(
            f"{name} go from {lowest} to {highest}, and the model has rows 0 to {rows - 1} for them; is this "
            "the tokenizer that the model was trained with?"
        )


def padding_id(config: ModelConfig, tokenizer: object, contents: JsonObject) -> int | None:
    """The token that fills short inputs: the tokenizer's, the configuration's, or else the end of text.

    Args:
        config: of the model.
        tokenizer: of the model, or None.
        contents: of its config.json.

    Returns:
        A row of the word embedding; None where nothing names one.
    """
    named = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
        contents.get("eos_token_id"),
    )
    return next((token for token in named if isinstance(token, int) and 0 <= token < config.vocab_size), None)
