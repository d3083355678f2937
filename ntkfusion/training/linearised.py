"""The tangent kernel's prediction of training: the model, linear in its parameters, trained the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.errors import InputError, NonFiniteLossError
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model
from ntkfusion.training.optimizer import Group, build_optimizer, changed_rates, rates_of, split
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.run import task_step
from ntkfusion.training.step import (
    Arrays,
    Loss,
    NonTrainable,
    Step,
    TrainState,
    dropout_key,
    first_state,
    logits_of,
    make_step,
    per_example,
)
from ntkfusion.utils.parameter_paths import Flat, Params, flatten, unflatten

#: Where the parameters before training are, among those of the linearised model.
START = "start"


@dataclasses.dataclass(frozen=True)
class TrainingCurve:
    """How one of the two models trained.

    Attributes:
        losses: mean loss of the examples of update t, before it.
        dev_logits: logits of the dev examples at `TrainingCurves.dev_steps`; empty without dev examples.
    """

    losses: Float[np.ndarray, " n"]
    dev_logits: Float[np.ndarray, "k N C"]


@dataclasses.dataclass(frozen=True)
class TrainingCurves:
    """A model and its linearisation, trained on the same batches.

    Attributes:
        real: the model, without dropout.
        predicted: its linearisation around the parameters before training.
        dev_steps: updates done at each look at the dev examples.
    """

    real: TrainingCurve
    predicted: TrainingCurve
    dev_steps: tuple[int, ...]


def linearised_training(
    model: Model,
    batches: Sequence[Arrays],
    recipe: Recipe,
    *,
    is_regression: bool = False,
    groups: Sequence[Group] = (),
    num_updates: int | None = None,
    dev: Sequence[Arrays] = (),
    every: int = 10,
) -> TrainingCurves:
    """Train a model and its linearisation with the same optimiser on the same batches.

    f_lin(θ) = f(θ₀) + J(θ₀)(θ − θ₀), J with respect to every trained parameter. Its trajectory is what the tangent
    kernel K = JJᵀ at θ₀ predicts: under plain gradient descent on the mean of squares of N examples
    f_{t+1} = f_t − (2η/N) K (f_t − y), and under gradient flow f(t) = y + exp(−(2/N) K t)(f₀ − y) (Jacot et al. 2018,
    arXiv 1806.07572; Lee et al. 2019, arXiv 1902.06720, equations 8 to 11, who take half of the squares). For AdamW,
    mini-batches, decay, clipping and cross-entropy there is no such formula; the linear model is trained as it is.

    Args:
        model: a model with a sequence classification head.
        batches: arrays of update 0, 1, …: ``[batch.arrays for batch in minibatches(...)]``.
        recipe: of the real run; its dropout is left out.
        is_regression: whether labels are scores.
        groups: parameters with rates of their own, or frozen.
        num_updates: of the run that these batches are the beginning of, for the schedule; by default there are no more.
        dev: batches of dev examples.
        every: updates from one look at them to the next; the first is before training, the last behind all updates.

    Returns:
        The `TrainingCurves`.

    Raises:
        InputError: if there are no batches, or more than updates, the model has no sequence classification head, a
            group fits no parameter, or the recipe is not float32 (differences θ − θ₀ would be rounded away).
        NonFiniteLossError: when a loss or a gradient is no number.
    """
    count = len(batches) if num_updates is None else num_updates
    _check(model, batches, recipe, count, every)
    config, recipe = model.config, dataclasses.replace(recipe, dropout=False)
    trained, frozen = split(model.params, groups)
    rates = changed_rates(rates_of(list(flatten(model.params)), groups))
    steps = tuple(sorted({0, len(batches), *range(0, len(batches), every)})) if dev else ()

    def follow(step: Step, frozen: Flat, outputs: Callable[..., Array]) -> TrainingCurve:
        state = first_state(trained, build_optimizer(recipe, count))
        rest = NonTrainable(frozen, model.constants, dropout_key(0), rates)
        return _followed(step, state, rest, batches, lambda params: _on_dev(outputs, params, rest, dev), steps)

    start = {f"{START}/{path}": leaf for path, leaf in trained.items()}
    with jax.default_matmul_precision("highest"):
        real = follow(task_step(config, recipe, count, is_regression), frozen, _program(config, logits_of))
        line = _linear_step(config, recipe, count, is_regression)
        return TrainingCurves(real, follow(line, frozen | start, _program(config, linear_logits)), steps)


def curve_distance(real: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " m"]) -> float:
    """‖predicted − real‖₂ / ‖real‖₂ of two loss curves.

    Args:
        real: losses by update.
        predicted: as many.

    Returns:
        0 where they agree.

    Raises:
        InputError: if they differ in length, hold what is no number, or the real one is empty or 0.

    >>> curve_distance(np.array([3.0, 4.0]), np.array([3.0, 3.0]))
    0.2
    """
    if real.shape != predicted.shape or not (np.isfinite(real).all() and np.isfinite(predicted).all()):
        raise InputError(f"curves need as many finite losses each, got {real.shape} and {predicted.shape}")
    size = float(np.linalg.norm(real))
    if not size:
        raise InputError("the real curve is empty or 0 everywhere; nothing is relative to that")
    return float(np.linalg.norm(predicted - real)) / size


def linear_logits(
    config: ModelConfig, params: Params, constants: Params, arrays: Mapping[str, Array]
) -> Float[Array, "B C"]:
    """f(θ₀) + J(θ₀)(θ − θ₀) for a batch, by forward differentiation.

    Args:
        config: a configuration with a sequence classification head.
        params: θ, frozen parameters included; of the others θ₀ too, below ``start``.
        constants: of the model.
        arrays: a batch.

    Returns:
        The logits.
    """
    now = flatten({name: part for name, part in params.items() if name != START})
    start = flatten(params[START])
    change = {path: now[path] - leaf for path, leaf in start.items()}

    def logits(moved: Flat) -> Float[Array, "B C"]:
        return logits_of(config, unflatten(now | moved), constants, arrays)

    value, slope = jax.jvp(logits, (start,), (change,))
    return value + slope


def linear_loss(config: ModelConfig, *, is_regression: bool) -> Loss:
    """Σ_n w_n ℓ(f_lin(x_n), y_n), as `ntkfusion.training.step.task_loss`."""

    def loss(params: Params, constants: Params, arrays: Mapping[str, Array], key: Array | None) -> Float[Array, ""]:
        each = per_example(linear_logits(config, params, constants, arrays), arrays["labels"], is_regression)
        return jnp.sum(each * arrays["weights"].astype(each.dtype))

    return loss


def _check(model: Model, batches: Sequence[Arrays], recipe: Recipe, num_updates: int, every: int) -> None:
    if model.config.head != "sequence-classification":
        raise InputError(f"a sequence classification head is needed, the model has {model.config.head or 'no head'}")
    if not 0 < len(batches) <= num_updates:
        raise InputError(f"1 to {num_updates} batches are needed, one per update; got {len(batches)}")
    if recipe.precision != "float32":
        raise InputError(f"precision {recipe.precision} rounds small changes of parameters away; use float32")
    if every < 1:
        raise InputError(f"every must be at least 1, got {every}")


def _followed(
    step: Step,
    state: TrainState,
    rest: NonTrainable,
    batches: Sequence[Arrays],
    on_dev: Callable[[Flat], np.ndarray],
    dev_steps: Sequence[int],
) -> TrainingCurve:
    """All updates, with looks at the dev examples in between."""
    looks = [on_dev(state.params)] if dev_steps else []
    losses = []
    for number, arrays in enumerate(batches):
        state, measured = step(state, rest, arrays)
        if not bool(measured.finite):
            raise NonFiniteLossError(number, (), float(measured.loss), state)
        losses.append(float(measured.loss))
        if number + 1 in dev_steps:
            looks.append(on_dev(state.params))
    return TrainingCurve(np.array(losses), np.stack(looks) if looks else np.zeros((0, 0, 0)))


def _on_dev(outputs: Callable[..., Array], params: Flat, rest: NonTrainable, dev: Sequence[Arrays]) -> np.ndarray:
    tree = unflatten(params | rest.params)
    logits = [np.asarray(outputs(tree, rest.constants, arrays))[np.asarray(arrays["weights"]) > 0] for arrays in dev]
    return np.concatenate(logits)


@lru_cache(maxsize=8)
def _linear_step(config: ModelConfig, recipe: Recipe, num_updates: int, is_regression: bool) -> Step:
    """The compiled update, shared by runs that differ in weights and batches only."""
    return make_step(linear_loss(config, is_regression=is_regression), build_optimizer(recipe, num_updates), recipe)


@lru_cache(maxsize=8)
def _program(config: ModelConfig, outputs: Callable[..., Array]) -> Callable[..., Array]:
    return jax.jit(partial(outputs, config))
