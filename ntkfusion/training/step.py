"""One update: loss, gradient, clipping, optimiser; compiled once for every shape of a batch.

Losses are sums over the examples of a batch, so that a batch may be computed in parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import ArrayLike, Model
from ntkfusion.training.recipe import Recipe
from ntkfusion.utils.parameter_paths import Flat, Params, unflatten

T = TypeVar("T")

#: What the network reads; a batch's other arrays are for the loss.
NETWORK_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "decoder_input_ids")

#: Arrays of a batch by name, as `ntkfusion.training.batches.TokenizedExamples.batch` makes them, or on the device.
Arrays = Mapping[str, ArrayLike]

#: (parameters, constants, arrays of a batch, dropout key or None) → the sum over examples, each times its weight.
Loss = Callable[[Params, Params, Mapping[str, Array], Array | None], Float[Array, ""]]


def network_inputs(arrays: Arrays) -> dict[str, ArrayLike]:
    """Of the arrays of a batch those that the network reads."""
    return {name: arrays[name] for name in NETWORK_INPUTS if name in arrays}


def logits_of(
    config: ModelConfig, params: Params, constants: Params, arrays: Mapping[str, Array], key: Array | None = None
) -> Float[Array, "B C"]:
    """Logits of a classification head for a batch of a training run."""
    given = network_inputs(arrays)
    # pyright cannot know that no array is called `checked`
    logits = Model(config, params, constants).apply(params, dropout_key=key, **given).logits  # pyright: ignore[reportArgumentType]
    assert logits is not None
    return logits


def task_loss(config: ModelConfig, *, is_regression: bool) -> Loss:
    """Σ_n w_n ℓ(f(x_n), y_n): cross-entropy of the softmax, or (f(x_n) − y_n)².

    Args:
        config: a configuration with a sequence classification head.
        is_regression: whether labels are scores.

    Returns:
        The loss.
    """

    def loss(params: Params, constants: Params, arrays: Mapping[str, Array], key: Array | None) -> Float[Array, ""]:
        logits = logits_of(config, params, constants, arrays, key)
        # probabilities of half precision would round small losses away
        logits = logits.astype(jnp.float32) if logits.dtype == jnp.bfloat16 else logits
        each = per_example(logits, arrays["labels"], is_regression)
        return jnp.sum(each * arrays["weights"].astype(each.dtype))

    return loss


def per_example(logits: Float[Array, "B C"], labels: Array, is_regression: bool) -> Float[Array, " B"]:
    """The loss of each example."""
    if is_regression:
        return jnp.square(logits[:, 0] - labels.astype(logits.dtype))
    # optax takes the largest logit out with integers of its own
    with jax.numpy_dtype_promotion("standard"):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that an update changes.

    Attributes:
        params: the trained parameters, by path.
        optimizer: the optimiser's state.
        step: updates done.
    """

    params: Flat
    optimizer: Any
    step: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NonTrainable:
    """Everything that no update changes.

    Attributes:
        params: frozen parameters, by path.
        constants: the model's constants.
        key: of dropout.
        rates: factors of the learning rate by path, broadcast to the parameter; 1 for those that are not there.
    """

    params: Flat
    constants: Params
    key: Array
    rates: Flat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What an update measures: the mean loss of its examples, the gradient's norm, whether both are numbers."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    finite: Bool[Array, ""]


#: (state, what is not trained, arrays of a batch) → (new state, what was measured); the old state's memory is reused.
Step = Callable[[TrainState, NonTrainable, Arrays], tuple[TrainState, StepMetrics]]


def first_state(trained: Flat, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; the parameters are copied, since updates take over their memory."""
    copied = jax.tree.map(jnp.copy, trained)
    return TrainState(copied, optimizer.init(copied), jnp.zeros((), jnp.int32))


def dropout_key(seed: int) -> jax.Array:
    """The key of dropout: a generator of bits that is fast to run and to compile."""
    return jax.random.key(seed, impl="rbg")


def make_step(loss: Loss, optimizer: optax.GradientTransformation, recipe: Recipe) -> Step:
    """The compiled update of a recipe.

    g = ∇ Σ_n w_n ℓ_n / Σ_n w_n over the whole batch, whatever parts it is computed in. Dropout's key of update t is
    fold_in(key, t), and of part k of it fold_in(that, k). If the loss or the gradient is no number, the state stays as
    it is.

    Args:
        loss: the sum over a batch.
        optimizer: from `build_optimizer`.
        recipe: the hyper-parameters.

    Returns:
        The `Step`.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, rest: NonTrainable, arrays: Mapping[str, Array]) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(rest.key, state.step)

        def mean(trained: Flat, part: Mapping[str, Array], number: Int[Array, ""]) -> Float[Array, ""]:
            params, constants = _in_precision((unflatten(trained | rest.params), rest.constants), recipe.precision)
            dropout = jax.random.fold_in(key, number) if recipe.dropout else None
            total = loss(params, constants, part, dropout)
            return total / jnp.sum(arrays["weights"]).astype(total.dtype)

        value, gradient = _accumulated(jax.value_and_grad(mean), state.params, arrays, recipe.accumulation)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        update = partial(_updated, optimizer, rest.rates)
        state = jax.lax.cond(finite, update, lambda state, _: state, state, gradient)
        return state, StepMetrics(value, norm, finite)

    return step


def _updated(optimizer: Any, rates: Flat, state: TrainState, gradient: Flat) -> TrainState:
    # optax's schedules multiply whole numbers by fractions
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = optimizer.update(gradient, state.optimizer, state.params)
    updates = {path: update.astype(state.params[path].dtype) for path, update in updates.items()}
    updates |= {path: updates[path] * rate.astype(updates[path].dtype) for path, rate in rates.items()}
    return TrainState({path: leaf + updates[path] for path, leaf in state.params.items()}, memory, state.step + 1)


def _accumulated(
    value_and_grad: Callable[..., tuple[Array, Flat]], params: Flat, arrays: Mapping[str, Array], parts: int
) -> tuple[Array, Flat]:
    """Sums over the parts of a batch, one after the other."""
    if parts == 1:
        return value_and_grad(params, arrays, jnp.zeros((), jnp.int32))
    split = {name: array.reshape(parts, -1, *array.shape[1:]) for name, array in arrays.items()}

    def add(total: tuple[Array, Flat], part: tuple[Mapping[str, Array], Array]) -> tuple[tuple[Array, Flat], None]:
        return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda array: array[0], split), jnp.int32(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, (split, jnp.arange(parts, dtype=jnp.int32)))[0]


def _in_precision(tree: T, precision: str) -> T:
    """Half precision where it is asked for; what is float64 or no fraction stays otherwise."""
    if precision == "float32":
        return tree
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
