"""Fine-tuning a model on a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from ntkfusion.data.tasks.label_order import classes_of_outputs, names_of_outputs
from ntkfusion.data.tasks.task import Task
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.models.new_head import with_label_names
from ntkfusion.training.optimizer import Group, split
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.run import Run, TokenizedTask
from ntkfusion.training.store import SAVE_STEPS, StateStore
from ntkfusion.training.trackers import Several, Tracker
from ntkfusion.utils.parameter_paths import unflatten


@dataclasses.dataclass(frozen=True)
class Fit:
    """What training gave.

    Attributes:
        model: the trained model: of the best evaluation or of the last update, as the recipe says. Its outputs are
            named after the task's classes, or as they were if they had names.
        history: metrics on the dev set at every evaluation, each with its ``step``.
        dev: metrics of `model` on the dev set. If the recipe keeps the best evaluation, or stops early, the dev set
            has chosen the model, and its score is that much too good.
        test: metrics of `model` on the test set, which nothing else looks at; empty without one.
        best_step: updates done at the best evaluation.
        num_updates: updates done.
    """

    model: Model
    history: tuple[dict[str, float], ...]
    dev: dict[str, float]
    test: dict[str, float]
    best_step: int
    num_updates: int


def fit(
    model: Model,
    task: Task,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    groups: Sequence[Group] = (),
    trackers: Sequence[Tracker] = (),
    store: StateStore | None = None,
    save_steps: int = SAVE_STEPS,
    data: TokenizedTask | None = None,
) -> Fit:
    """Fine-tune a model on a task.

    A head that its checkpoint names the outputs of keeps its order, whatever the order of the task's classes.

    Constants of compressed blocks and frozen parameters are never changed. The order of examples and dropout's keys
    follow from the seed and the number of the update: the same seed on the same machine gives the same
    parameters, interrupted or not.

    Args:
        model: a model with a sequence classification head (`ntkfusion.with_new_head`) and a tokenizer.
        task: examples, from `ntkfusion.load_task` or `ntkfusion.read_task`.
        recipe: the hyper-parameters; by default those of `Recipe`.
        seed: of the order of examples and of dropout.
        groups: parameters with rates of their own, or frozen; the first group that fits counts.
        trackers: get loss, gradient norm, rate, tokens and seconds at every update, and ``dev/…`` at evaluations.
        store: where the state is saved; a run that it holds is gone on with.
        save_steps: updates after which the state is saved, beside every evaluation.
        data: the task's examples as `TokenizedTask.of` tokenises them for this recipe, where that is done already.

    Returns:
        The `Fit`.

    Raises:
        InputError: if the model's head does not fit the task (its number of outputs, their names, the kind of problem),
            or a group fits no parameter.
        NonFiniteLossError: when a loss or a gradient is no number; the state before that update is saved.
        NonFiniteOutputsError: when an output at an evaluation is no finite number.
    """
    recipe = recipe or Recipe()
    check_head(model, task)
    data = TokenizedTask.of(model, task, recipe) if data is None else data
    _check_order(model, task, data)
    run = Run(
        model=model,
        task=task,
        data=data,
        recipe=recipe,
        seed=seed,
        groups=tuple(groups),
        tracker=Several(trackers),
        store=store,
        save_steps=save_steps,
    )
    with jax.default_matmul_precision("highest" if recipe.precision == "float32" else "default"):
        return _finish(run)


def _finish(run: Run) -> Fit:
    state, progress = run.train()
    _, frozen = split(run.model.params, run.groups)
    params = (progress.best if run.recipe.keep == "best" else state.params) | frozen
    chosen = progress.best_step if run.recipe.keep == "best" else int(state.step)
    dev = next(dict(each) for each in progress.history if each["step"] == chosen)
    dev.pop("step")
    test = {} if run.task.test is None else run.scores("test", params, chosen)
    names = names_of_outputs(run.model, run.task.labels)
    model = with_label_names(dataclasses.replace(run.model, params=unflatten(params)), names)
    return Fit(model, progress.history, dev, test, progress.best_step, int(state.step))


def check_head(model: Model, task: Task) -> None:
    """Refuse a model whose head gives other outputs than a task has.

    Raises:
        InputError: if it has no sequence classification head, or one with another number of outputs, other names for
            them, or for another kind of problem.
    """
    if model.config.head != "sequence-classification" or model.config.num_labels != task.num_labels:
        raise InputError(
            f"task {task.name} needs a sequence classification head with {task.num_labels} outputs, the model has "
            f"{model.config.head or 'no head'} with {model.config.num_labels or 0}; make one with "
            f'with_new_head(model, "sequence-classification", num_labels={task.num_labels})'
        )
    classes_of_outputs(model, task.labels)


def _check_order(model: Model, task: Task, data: TokenizedTask) -> None:
    """Refuse examples that were tokenised for a head with another order of classes."""
    order = classes_of_outputs(model, task.labels)
    same = tuple(range(task.num_labels))
    if any((each.classes or same) != order for each in data.sets.values()):
        raise InputError("data was tokenised for a model whose head has another order of classes; leave it out")
