"""How much memory training takes, before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array

from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.training.layer_loss import Pair, layer_loss
from ntkfusion.training.optimizer import Group, split
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.step import dropout_key, logits_of
from ntkfusion.utils.memory import memory_limit, show_size
from ntkfusion.utils.parameter_paths import Flat, unflatten

#: (trained parameters, frozen ones, arrays of a batch) → what is differentiated by the trained ones.
Forward = Callable[[Flat, Flat, Mapping[str, Array]], Array]


#: What the arrays of a batch are like.
BatchShapes = Mapping[str, jax.ShapeDtypeStruct]


def training_bytes(model: Model, recipe: Recipe, length: int, groups: Sequence[Group] = ()) -> int:
    """An estimate of the memory of an update of fine-tuning at the longest padded length.

    Parameters once more than they are loaded, their gradient, Adam's two moments and the best evaluation's copy; and
    everything that the backward pass reads again, from JAX's own residuals before compilation fuses any of them away.

    Args:
        model: the model.
        recipe: the hyper-parameters.
        length: padded length in tokens.
        groups: which parameters are frozen.

    Returns:
        Bytes.
    """

    def forward(trained: Flat, frozen: Flat, arrays: Mapping[str, Array]) -> Array:
        key = dropout_key(0) if recipe.dropout else None
        return logits_of(model.config, unflatten(trained | frozen), model.constants, arrays, key)

    return _update_bytes(forward, split(model.params, groups), _tokens(recipe, length), recipe, kept=2)


def tuning_bytes(pair: Pair, recipe: Recipe, length: int) -> int:
    """An estimate of the memory of an update of layer-wise tuning at the longest padded length.

    Student and teacher, gradient and moments of the blocks that are tuned, what the backward pass reads again, and the
    hidden states of both, which are compared at the end.

    Args:
        pair: student and teacher.
        recipe: the hyper-parameters.
        length: padded length in tokens.

    Returns:
        Bytes.
    """

    def forward(trained: Flat, frozen: Flat, arrays: Mapping[str, Array]) -> Array:
        return layer_loss(pair.shapes)(unflatten(trained | frozen), pair.constants, arrays, None)

    arrays = _tokens(recipe, length) | {"weights": jax.ShapeDtypeStruct((recipe.part_size, length), jnp.float32)}
    student = pair.shapes.student
    states = 2 * len(student.applications) * recipe.part_size * length * student.hidden_size * 4
    return states + _update_bytes(forward, (pair.trained, pair.frozen), arrays, recipe, kept=1)


def check_training_memory(model: Model, recipe: Recipe, length: int, groups: Sequence[Group] = ()) -> None:
    """Refuse fine-tuning that would not fit, and say what would.

    Raises:
        InputError: with the memory that is needed and there, and options that need less.
    """
    _check(training_bytes(model, recipe, length, groups), recipe, length, ", or freeze embeddings")


def check_tuning_memory(pair: Pair, recipe: Recipe, length: int) -> None:
    """Refuse layer-wise tuning that would not fit, and say what would.

    Raises:
        InputError: with the memory that is needed and there, and options that need less.
    """
    _check(tuning_bytes(pair, recipe, length), recipe, length, "")


def _tokens(recipe: Recipe, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = jax.ShapeDtypeStruct((recipe.part_size, length), jnp.int32)
    return {"input_ids": shape, "attention_mask": shape}


def _update_bytes(
    forward: Forward, params: tuple[Flat, Flat], arrays: BatchShapes, recipe: Recipe, *, kept: int
) -> int:
    """Parameters, `kept` copies of the trained ones, their gradient, the optimiser's moments, and residuals."""
    trained, frozen = params
    copies = kept + (3 if recipe.optimizer == "adamw" else 1)
    half = recipe.precision == "bfloat16"
    residuals = _residual_bytes(forward, params, arrays) // (2 if half else 1)
    return _bytes(trained) * copies + _bytes(frozen) + residuals


def _residual_bytes(forward: Forward, params: tuple[Flat, Flat], arrays: BatchShapes) -> int:
    """What the backward pass reads beside parameters and batch, each array once."""

    def backward(trained: Flat, frozen: Flat, arrays: Mapping[str, Array]) -> object:
        return jax.vjp(lambda trained: forward(trained, frozen, arrays), trained)[1]

    program = jax.make_jaxpr(backward)(*params, arrays).jaxpr
    residuals: set[Any] = {each for each in program.outvars if isinstance(each, Var)} - {*program.invars}
    return sum(each.aval.size * jnp.dtype(each.aval.dtype).itemsize for each in residuals)


def _bytes(tree: object) -> int:
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _check(needed: int, recipe: Recipe, length: int, more: str) -> None:
    limit = memory_limit(None)
    if needed > limit:
        raise InputError(
            f"an update of {recipe.part_size} examples of {length} tokens needs about "
            f"{show_size(needed)}, there is room for {show_size(limit)}: compute a batch in more parts "
            f"(accumulation), or use a smaller batch_size or max_length{more}"
        )
