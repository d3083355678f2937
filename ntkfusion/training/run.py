"""A training run: what stays the same in it, and the loop over updates."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.data.tasks.task import Task
from ntkfusion.errors import NonFiniteLossError, NonFiniteOutputsError
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model
from ntkfusion.training.batches import Minibatch, TokenizedExamples, encode, minibatches
from ntkfusion.training.evaluation import padded_lengths, predict, score
from ntkfusion.training.optimizer import Group, build_optimizer, changed_rates, learning_rate, rates_of, split
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.step import (
    NonTrainable,
    Step,
    StepMetrics,
    TrainState,
    dropout_key,
    first_state,
    make_step,
    task_loss,
)
from ntkfusion.training.store import StateStore, TrainingProgress, run_digest
from ntkfusion.training.trackers import Tracker
from ntkfusion.utils.parameter_paths import Flat, flatten, unflatten


@dataclasses.dataclass(frozen=True)
class TokenizedTask:
    """A task's examples, tokenised.

    Attributes:
        sets: ``train``, ``dev`` and perhaps ``test``.
        buckets: the lengths that batches are padded to.
    """

    sets: Mapping[str, TokenizedExamples]
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, task: Task, recipe: Recipe) -> TokenizedTask:
        """Tokenise a task's examples."""
        examples = {"train": task.train, "dev": task.dev} | ({} if task.test is None else {"test": task.test})
        sets = {name: encode(model, each, max_length=recipe.max_length) for name, each in examples.items()}
        return cls(sets, padded_lengths(model, list(sets.values()), recipe.num_buckets))


@dataclasses.dataclass(frozen=True)
class Run:
    """What does not change while a model is trained.

    Attributes:
        model: the model before training.
        task: what it is trained for.
        data: its examples, tokenised.
        recipe: the hyper-parameters.
        seed: of the order of examples and of dropout.
        groups: parameters with rates of their own.
        tracker: gets all numbers.
        store: where the state is saved, or None.
        save_steps: updates after which it is saved, beside every evaluation.
    """

    model: Model
    task: Task
    data: TokenizedTask
    recipe: Recipe
    seed: int
    groups: tuple[Group, ...]
    tracker: Tracker
    store: StateStore | None
    save_steps: int

    @property
    def num_updates(self) -> int:
        """Updates of a run that nothing stops early."""
        return self.recipe.num_updates(len(self.task.train))

    def train(self) -> tuple[TrainState, TrainingProgress]:
        """All updates that are left to do, from the start or from the last save.

        Raises:
            NonFiniteLossError: when a loss or gradient is no number; the state before is saved.
            NonFiniteOutputsError: when an output at an evaluation is none.
        """
        trained, frozen = split(self.model.params, self.groups)
        state = first_state(trained, build_optimizer(self.recipe, self.num_updates))
        progress = TrainingProgress(trained)
        if self.store is not None:
            progress = dataclasses.replace(progress, run=self.digest(trained, frozen))
            state, progress = self.store.resume(state, progress)
        if progress.finished:
            return state, progress
        config, recipe = self.model.config, self.recipe
        step = task_step(config, recipe.of_one_update(), self.num_updates, self.task.is_regression)
        rates = rates_of(list(flatten(self.model.params)), self.groups)
        rest = NonTrainable(frozen, self.model.constants, dropout_key(self.seed), changed_rates(rates))
        log, due = UpdateLog(recipe, self.num_updates), self.evaluations()
        for batch in minibatches(
            self.data.sets["train"], recipe, self.data.buckets, seed=self.seed, start=int(state.step)
        ):
            state, measured = step(state, rest, batch.arrays)
            self._check(batch, measured, state, progress)
            self.tracker.log(batch.step + 1, log.values(batch, measured))
            if batch.step + 1 in due:
                progress = self.evaluated(state, progress, frozen)
            if batch.step + 1 in due or (batch.step + 1) % self.save_steps == 0:
                self.save(state, progress)
                log.start()  # seconds are those of updates
            if progress.finished:
                break
        return state, progress

    def digest(self, trained: Flat, frozen: Flat) -> str:
        """What the run depends on, in short: all numbers that two runs with the same result share.

        Dev and test set are among them: they decide padded lengths, and which evaluation is best.
        """
        rates = sorted(map(str, rates_of([*trained, *frozen], self.groups).items()))
        facts = (self.recipe, self.seed, self.model.config, rates, self.task.metrics, self.data.buckets)
        arrays = trained | frozen | flatten(self.model.constants)
        return run_digest(facts, tuple(self.data.sets.values()), arrays)

    def _check(self, batch: Minibatch, measured: StepMetrics, state: TrainState, progress: TrainingProgress) -> None:
        if not bool(measured.finite):
            self.save(state, progress)
            raise NonFiniteLossError(batch.step, batch.rows, float(measured.loss), state)

    def save(self, state: TrainState, progress: TrainingProgress) -> None:
        """Save where there is a place to."""
        if self.store is not None:
            self.store.save(state, progress)

    def evaluations(self) -> frozenset[int]:
        """Numbers of updates behind which the dev set is looked at: evenly spread over every epoch, and its end."""
        per_epoch, each = self.recipe.updates_per_epoch(len(self.task.train)), self.recipe.evaluations
        within = {max(1, round(per_epoch * part / each)) for part in range(1, each + 1)}
        return frozenset(epoch * per_epoch + place for epoch in range(self.recipe.epochs) for place in within)

    def evaluated(self, state: TrainState, progress: TrainingProgress, frozen: Flat) -> TrainingProgress:
        """The progress after a look at the dev set."""
        step = int(state.step)
        scores = self.scores("dev", state.params | frozen, step)
        self.tracker.log(step, {f"dev/{name}": value for name, value in scores.items()})
        history = (*progress.history, {"step": float(step), **scores})
        better = not progress.history or scores[self.first] > max(each[self.first] for each in progress.history)
        stale = 0 if better else progress.stale + 1
        patience = self.recipe.patience
        ended = step == self.num_updates or (patience is not None and stale >= patience)
        # copied: the next update takes over the state's memory
        best = jax.tree.map(jnp.copy, state.params) if better else progress.best
        return TrainingProgress(best, history, step if better else progress.best_step, stale, ended, progress.run)

    @property
    def first(self) -> str:
        """The metric that decides."""
        return self.task.metrics[0]

    def scores(self, split: str, params: Flat, step: int) -> dict[str, float]:
        """Metrics on the dev or the test set.

        Raises:
            NonFiniteOutputsError: if an output is no finite number after this many updates.
        """
        model = dataclasses.replace(self.model, params=unflatten(params))
        logits = predict(model, self.data.sets[split], batch_size=self.recipe.part_size, buckets=self.data.buckets)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise NonFiniteOutputsError(step, split, bad.tolist())
        return score(self.task.metrics, *self.data.sets[split].in_task_order(logits))


@lru_cache(maxsize=8)
def task_step(config: ModelConfig, recipe: Recipe, num_updates: int, is_regression: bool) -> Step:
    """The compiled update for a task, shared by all runs that do not differ in it."""
    loss = task_loss(config, is_regression=is_regression)
    return make_step(loss, build_optimizer(recipe, num_updates), recipe)


class UpdateLog:
    """The numbers of every update that trackers get."""

    def __init__(self, recipe: Recipe, num_updates: int) -> None:
        """Begin now."""
        self._rate = learning_rate(recipe, num_updates)
        self.start()

    def start(self) -> None:
        """Count the next update's seconds from here."""
        self._last = time.perf_counter()

    def values(self, batch: Minibatch, measured: StepMetrics) -> dict[str, float]:
        """Loss, gradient norm, rate, tokens, and seconds since the last update or `start`."""
        numbers = {
            "loss": float(measured.loss),
            "gradient_norm": float(measured.gradient_norm),
            "learning_rate": float(jnp.asarray(self._rate(batch.step))),
            "tokens": float(batch.num_tokens),
        }
        before = self._last
        self.start()
        return numbers | {"seconds": self._last - before}
