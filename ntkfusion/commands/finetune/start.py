"""The model that ``ntkfusion finetune`` begins with: with a head, compressed and tuned, every step kept on disk."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import ExitStack
from pathlib import Path

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.commands.finetune.plan import FinetunePlan
from ntkfusion.compression.compress_model import compress
from ntkfusion.data.tasks.label_order import classes_of_outputs
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.models.new_head import head_paths, with_label_names, with_new_head
from ntkfusion.training.layerwise import tune_layers, tuning_recipe
from ntkfusion.training.memory import check_training_memory
from ntkfusion.training.optimizer import Group, rates_of
from ntkfusion.training.run import TokenizedTask
from ntkfusion.training.store import StateStore
from ntkfusion.training.trackers import JsonLines, forget_after
from ntkfusion.utils.files import read_json, write_json
from ntkfusion.utils.parameter_paths import flatten
from ntkfusion.utils.progress import Progress

#: Texts of the training set that a compression method may look at.
CALIBRATION_TEXTS = 2000

#: What layer-wise tuning measured at every update.
TUNING_LINES = "tuning.jsonl"

#: Folders that are there until a seed is finished, for `--resume`.
_STEPS = ("compressed", "tuning", "start", "state")


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """What the steps of one seed share.

    Attributes:
        plan: the request.
        original: the model as it was loaded.
        data: the task's examples, tokenised.
        seed: the seed.
        folder: where its results go.
        progress: shows what is being done, and carries Ctrl-C.
    """

    plan: FinetunePlan
    original: Model
    data: TokenizedTask
    seed: int
    folder: Path
    progress: Progress

    def forget_steps(self) -> None:
        """Delete what only an interrupted run needs."""
        for name in _STEPS:
            shutil.rmtree(self.folder / name, ignore_errors=True)


def starting_model(run: SeedRun) -> Model:
    """The model before fine-tuning; where compression or tuning made it, it is read from where it is kept.

    Raises:
        InputError: if a group of `--freeze` or `--rates` fits no parameter, or training it would not fit.
    """
    if run.plan.method is None:
        return with_head(run.original, run.plan, run.seed)
    start, compressed = run.folder / "start", run.folder / "compressed"
    if start.exists():
        return load_model(str(start))
    if not compressed.exists():
        run.progress.say(f"seed {run.seed}: {run.plan.options.compress} at width {run.plan.options.width:g}")
        _keep(_compressed(run), compressed)
    small = load_model(str(compressed))
    check_trainable(run.plan, small, run.data)
    if run.plan.options.tune_layers:
        small = _tuned(run, small)
        _keep(small, start)
    return small


def with_head(model: Model, plan: FinetunePlan, seed: int) -> Model:
    """The model with its own head if that fits the task, else with a fresh one.

    Raises:
        InputError: if it has a head with as many outputs as the task has classes, and nobody knows which is which.
    """
    order, task = plan.options.label_order, plan.task
    if not has_own_head(model, plan):
        if order:
            raise InputError(
                f"--label-order says what the outputs of the checkpoint's head are; {model.source} has none with "
                f"{task.num_labels} of them: leave it out, and a fresh head takes its place"
            )
        return with_new_head(model, "sequence-classification", num_labels=task.num_labels, seed=seed)
    named = with_label_names(model, order) if order else model
    classes_of_outputs(named, task.labels)
    return named


def has_own_head(model: Model, plan: FinetunePlan) -> bool:
    """Whether a model keeps its head: it has as many outputs as the task needs, and no other is asked for."""
    if plan.options.new_head:
        return False
    return model.config.head == "sequence-classification" and model.config.num_labels == plan.task.num_labels


def groups_of(plan: FinetunePlan, model: Model) -> tuple[Group, ...]:
    """Frozen parameters and rates, once the model is known."""
    if not plan.options.probe:
        return plan.groups
    head = head_paths(model)
    return (Group(lambda path: path not in head, 0.0), *plan.groups)


def check_trainable(plan: FinetunePlan, model: Model, data: TokenizedTask) -> None:
    """Refuse groups that fit no parameter of a model, and training that would not fit into memory.

    Raises:
        InputError: as said.
    """
    groups = groups_of(plan, model)
    rates_of(list(flatten(model.params)), groups)
    check_training_memory(model, plan.recipe, max(data.buckets), groups)


def tuning_report(folder: Path) -> dict[str, float]:
    """What layer-wise tuning did, of a seed's folder; empty without it."""
    path = folder / "tuning.json"
    return read_json(path) if path.exists() else {}


def _compressed(run: SeedRun) -> Model:
    plan, train = run.plan, run.plan.task.train
    assert plan.method is not None
    texts = train.take(range(min(CALIBRATION_TEXTS, len(train)))).first
    small, _ = compress(run.original, plan.method, layers=plan.options.layers or None, calibration=texts, seed=run.seed)
    return with_head(small, plan, run.seed)


def _tuned(run: SeedRun, small: Model) -> Model:
    recipe, task, folder = tuning_recipe(run.plan.recipe), run.plan.task, run.folder
    with ExitStack() as stack:
        store = StateStore(folder / "tuning")
        stack.callback(store.close)
        forget_after(folder / TUNING_LINES, -1 if store.step is None else store.step)
        lines = JsonLines(folder / TUNING_LINES)
        stack.callback(lines.close)
        total = recipe.num_updates(len(task.train))
        shown = run.progress.tracker(f"seed {run.seed}, layers", total, store.step or 0)
        teacher = with_head(run.original, run.plan, run.seed)
        tuned, report = tune_layers(
            small,
            teacher,
            task.train,
            recipe,
            held_out=task.dev,
            seed=run.seed,
            trackers=[shown, lines],
            store=store,
        )
    write_json(folder / "tuning.json", {"loss_before": report.loss_before, "loss_after": report.loss_after})
    return tuned


def _keep(model: Model, folder: Path) -> None:
    save_model(model, folder, format="ntkfusion", dtype="float32")
