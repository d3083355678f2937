"""Layer-wise tuning: compressed blocks learn the hidden states that the original model has on a task's texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import jax
import numpy as np

from ntkfusion.data.tasks.task import Examples, hold_out
from ntkfusion.errors import InputError, NonFiniteLossError
from ntkfusion.models.model import Model
from ntkfusion.training.batches import TokenizedExamples, encode, minibatches
from ntkfusion.training.evaluation import padded_lengths
from ntkfusion.training.layer_loss import Pair, Shapes, layer_loss, mean_errors, token_batch
from ntkfusion.training.memory import check_tuning_memory
from ntkfusion.training.optimizer import build_optimizer
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.run import UpdateLog
from ntkfusion.training.step import NonTrainable, Step, TrainState, dropout_key, first_state, make_step
from ntkfusion.training.store import SAVE_STEPS, StateStore, TrainingProgress, run_digest
from ntkfusion.training.trackers import Several, Tracker
from ntkfusion.utils.parameter_paths import Flat, flatten, unflatten


def tuning_recipe(recipe: Recipe) -> Recipe:
    """How layers are tuned before a recipe: one epoch of Adam at its rate, constant, and nothing else.

    See docs/training.md, "Layer-wise tuning".
    """
    without = {"warmup": 0.0, "weight_decay": 0.0, "clip_norm": None, "dropout": False}
    return dataclasses.replace(recipe, epochs=1, optimizer="adamw", schedule="constant", **without)


#: The recipe of layer-wise tuning when nothing else is said.
TUNE_LAYERS = tuning_recipe(Recipe(keep="last"))

#: Sentences, or examples of a task, whose labels are not looked at.
Texts: TypeAlias = Sequence[str] | Examples


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What layer-wise tuning did, on texts that it did not see.

    Attributes:
        layers_before: mean over tokens of ‖H̃_ℓ − H_ℓ‖² for every layer ℓ, before tuning.
        layers_after: the same, after it.
        num_held_out: texts that this was measured on.
        num_updates: updates done.
    """

    layers_before: tuple[float, ...]
    layers_after: tuple[float, ...]
    num_held_out: int
    num_updates: int

    @property
    def loss_before(self) -> float:
        """The mean over the layers, before tuning."""
        return sum(self.layers_before) / len(self.layers_before)

    @property
    def loss_after(self) -> float:
        """The mean over the layers, after it."""
        return sum(self.layers_after) / len(self.layers_after)


def tune_layers(
    student: Model,
    teacher: Model,
    texts: Texts,
    recipe: Recipe | None = None,
    *,
    held_out: Texts | None = None,
    seed: int = 0,
    trackers: Sequence[Tracker] = (),
    store: StateStore | None = None,
    save_steps: int = SAVE_STEPS,
) -> tuple[Model, LayerReport]:
    """Tune compressed MLP blocks towards the hidden states of the original model.

    L = (1/L) Σ_{ℓ=1}^{L} mean_t ‖H̃_ℓ(t) − H_ℓ(t)‖² over tokens t that are no padding, both models without dropout;
    H_ℓ as `Model.hidden_states` has them: embeddings are no layer. Trained are all parameters of the blocks that differ
    from the teacher's; constants, routers and the rest of the model stay what they are. Source: Ai et al. 2023
    (arXiv 2307.08941); their code counts padding too, and of a Switch Transformer the decoder alone.

    Args:
        student: the compressed model, with a tokenizer; it is not changed.
        teacher: the same model before compression, not trained since.
        texts: sentences, or examples of a task, pairs among them; labels are not used.
        recipe: the hyper-parameters, by default `TUNE_LAYERS`; no dropout. The result has the parameters of the last
            update: there are no evaluations in between.
        held_out: texts to measure on; by default a random tenth of `texts`, which is then not trained on.
        seed: of the order, and of the tenth.
        trackers: get loss, gradient norm, rate, tokens and seconds at every update, and ``held_out/loss``
            before and after.
        store: where the state is saved; a run that it holds is gone on with, and ends bit for bit the same.
        save_steps: updates after which the state is saved, beside the first and the last one.

    Returns:
        The tuned model, and the `LayerReport`.

    Raises:
        InputError: if the teacher has the same blocks as the student or another architecture, the recipe has dropout,
            there are no texts, an update would not fit into memory, or the store holds another run.
        NonFiniteLossError: when a loss or a gradient is no number; the state before that update is saved.
    """
    recipe = TUNE_LAYERS if recipe is None else recipe
    if recipe.dropout:
        raise InputError("layer-wise tuning compares models without dropout; give a recipe with dropout=False")
    pair, sets = Pair.of(student, teacher), _splits(texts, held_out, seed)
    train, rest = (encode(student, each, max_length=recipe.max_length) for each in sets)
    buckets = padded_lengths(student, (train, rest), recipe.num_buckets)
    check_tuning_memory(pair, recipe, max(buckets))
    tuning = _Tuning(
        pair=pair,
        texts=train,
        held_out=rest,
        buckets=buckets,
        recipe=recipe,
        seed=seed,
        store=store,
        save_steps=save_steps,
    )
    with jax.default_matmul_precision("highest" if recipe.precision == "float32" else "default"):
        trained, report = tuning.run(Several(trackers))
    return dataclasses.replace(student, params=unflatten(trained | pair.frozen)["student"]), report


def _splits(texts: Texts, held_out: Texts | None, seed: int) -> tuple[Examples, Examples]:
    """What is trained on, and what is measured on."""
    train = _examples(texts)
    if held_out is None and len(train) < 2:
        raise InputError("one text cannot be both trained and measured on; give held_out")
    return hold_out(train, seed=seed) if held_out is None else (train, _examples(held_out))


def _examples(texts: Texts) -> Examples:
    first, second = (texts.first, texts.second) if isinstance(texts, Examples) else (tuple(texts), None)
    if not first:
        raise InputError("layer-wise tuning needs texts, and others to measure on; got none")
    # one class: labels have no part in this, not in what is held out either
    return Examples(first, second, np.zeros(len(first), np.int32))


@dataclasses.dataclass(frozen=True)
class _Tuning:
    """What stays the same while blocks are tuned."""

    pair: Pair
    texts: TokenizedExamples
    held_out: TokenizedExamples
    buckets: tuple[int, ...]
    recipe: Recipe
    seed: int
    store: StateStore | None
    save_steps: int

    def run(self, tracker: Tracker) -> tuple[Flat, LayerReport]:
        recipe, pair, count = self.recipe, self.pair, self.recipe.num_updates(len(self.texts))
        state, progress = self._start(tracker)
        rest = NonTrainable(pair.frozen, pair.constants, dropout_key(self.seed), {})
        step, log = _step(pair.shapes, recipe, count), UpdateLog(recipe, count)
        for batch in minibatches(self.texts, recipe, self.buckets, seed=self.seed, start=int(state.step)):
            state, measured = step(state, rest, token_batch(batch.arrays))
            if not bool(measured.finite):
                self._save(state, progress)
                raise NonFiniteLossError(batch.step, batch.rows, float(measured.loss), state)
            tracker.log(batch.step + 1, log.values(batch, measured))
            if (batch.step + 1) % self.save_steps == 0 or batch.step + 1 == count:
                self._save(state, progress)
                log.start()  # seconds are those of updates
        after = self._measure(state.params, count, tracker)
        before = tuple(progress.history[0][f"layer_{index}"] for index in range(len(after)))
        return state.params, LayerReport(before, after, len(self.held_out), count)

    def _start(self, tracker: Tracker) -> tuple[TrainState, TrainingProgress]:
        """State and errors before the first update that is left to do; the errors of every layer are the history."""
        state = first_state(self.pair.trained, build_optimizer(self.recipe, self.recipe.num_updates(len(self.texts))))
        progress = TrainingProgress({}, run="" if self.store is None else self._digest())
        if self.store is not None and self.store.step is not None:
            return self.store.resume(state, progress)
        before = self._measure(self.pair.trained, 0, tracker)
        errors = {f"layer_{index}": error for index, error in enumerate(before)}
        progress = dataclasses.replace(progress, history=(errors,))
        self._save(state, progress)
        return state, progress

    def _save(self, state: TrainState, progress: TrainingProgress) -> None:
        if self.store is not None:
            self.store.save(state, progress)

    def _digest(self) -> str:
        pair = self.pair
        arrays = {**pair.trained, **pair.frozen, **flatten(pair.constants)}
        return run_digest((self.recipe, self.seed, pair.shapes, self.buckets), (self.texts, self.held_out), arrays)

    def _measure(self, trained: Flat, step: int, tracker: Tracker) -> tuple[float, ...]:
        params = trained | self.pair.frozen
        found = mean_errors(self.pair, params, self.held_out, self.recipe.part_size, self.buckets)
        tracker.log(step, {"held_out/loss": sum(found) / len(found)})
        return found


@lru_cache(maxsize=8)
def _step(shapes: Shapes, recipe: Recipe, num_updates: int) -> Step:
    """The compiled update, shared by runs that differ in weights and texts only."""
    return make_step(layer_loss(shapes), build_optimizer(recipe, num_updates), recipe)
