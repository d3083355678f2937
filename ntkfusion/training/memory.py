"""How much memory training takes, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ntkfusion.errors import InputError
from ntkfusion.kernels.memory import memory_limit, show_size
from ntkfusion.models.model import Model
from ntkfusion.training.groups import Group, split, unflatten
from ntkfusion.training.losses import logits_of
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.step import dropout_key


def training_bytes(model: Model, recipe: Recipe, length: int, groups: Sequence[Group] = ()) -> int:
    """An estimate of the memory of an update at the longest padded length.

    Parameters once more than they are loaded, their gradient, Adam's two moments and the best evaluation's copy; and
    everything that the backward pass reads again, from the shapes of JAX's own residuals before compilation fuses any
    of them away.

    Args:
        model: the model.
        recipe: the hyper-parameters.
        length: padded length in tokens.
        groups: which parameters are frozen.

    Returns:
        Bytes.
    """
    trained, frozen = split(model.params, groups)
    copies = 4 if recipe.optimizer == "adamw" else 2
    stored = _bytes(trained) * (1 + copies) + _bytes(frozen)
    half = recipe.precision == "bfloat16"
    return stored + _residuals(model, recipe, length, (trained, frozen)) // (2 if half else 1)


def _residuals(model: Model, recipe: Recipe, length: int, params: tuple[Any, Any]) -> int:
    ids = jax.ShapeDtypeStruct((recipe.part_size, length), jnp.int32)

    def backward(trained: Any, frozen: Any, ids: jax.Array) -> Any:
        key = dropout_key(0) if recipe.dropout else None
        arrays = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
        run = partial(logits_of, model.config, constants=model.constants, arrays=arrays, key=key)
        return jax.vjp(lambda trained: run(unflatten(trained | frozen)), trained)[1]

    return _bytes(jax.eval_shape(backward, *params, ids)) - _bytes(params)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def check_training_memory(model: Model, recipe: Recipe, length: int, groups: Sequence[Group] = ()) -> None:
    """Refuse a run that would not fit, and say what would.

    Raises:
        InputError: with the memory that is needed and there, and options that need less.
    """
    needed, limit = training_bytes(model, recipe, length, groups), memory_limit(None)
    if needed > limit:
        raise InputError(
            f"an update of {recipe.part_size} examples of {length} tokens needs about "
            f"{show_size(needed)}, there is room for {show_size(limit)}: compute a batch in more parts "
            "(accumulation), or use a smaller batch_size or max_length, or freeze embeddings"
        )
