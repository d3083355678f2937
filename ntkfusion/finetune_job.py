"""The job behind ``ntkfusion finetune``: compress, tune layers, fine-tune, once per seed; interrupted runs go on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.compression.compress import compress
from ntkfusion.conditions import command_line, describe_model, environment
from ntkfusion.files import new_files
from ntkfusion.finetune_plan import REQUEST, FinetunePlan, request_of
from ntkfusion.folders import MARKER
from ntkfusion.models.model import Model
from ntkfusion.models.new_head import head_paths, with_new_head
from ntkfusion.progress import TrainingBar
from ntkfusion.training.evaluate import evaluate
from ntkfusion.training.fit import Fit, fit
from ntkfusion.training.groups import Group
from ntkfusion.training.layerwise import tune_layers
from ntkfusion.training.memory import check_training_memory
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.run import Data
from ntkfusion.training.store import StateStore
from ntkfusion.training.trackers import JsonLines, TensorBoard, Tracker, forget_after, read_lines

#: Texts of the training set that a compression method may look at.
CALIBRATION_TEXTS = 2000
#: What layer-wise tuning measured at every update.
TUNING_LINES = "tuning.jsonl"


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        seed: the seed.
        zero_shot: metrics on the dev set before any training.
        tuning: mean squared distance of hidden states from the original's on the dev set's texts, before and after
            layer-wise tuning; empty without it.
        dev: metrics on the dev set of the model that was kept.
        test: metrics on the test set; empty without one.
        history: metrics on the dev set at every evaluation.
        best_step: updates done at the best evaluation.
        num_updates: updates done.
        parameters: trainable numbers of the model.
        seconds: of all updates.
        tokens: of all updates, without padding.
    """

    seed: int
    zero_shot: dict[str, float]
    tuning: dict[str, float]
    dev: dict[str, float]
    test: dict[str, float]
    history: list[dict[str, float]]
    best_step: int
    num_updates: int
    parameters: int
    seconds: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """All seeds with their conditions."""

    seeds: tuple[SeedResult, ...]
    conditions: dict[str, Any]
    metrics: tuple[str, ...]


def run(plan: FinetunePlan, bar: TrainingBar, check: Callable[[], None]) -> Finetuned:
    """Fine-tune with every seed; what the folder holds of an interrupted run is not done again.

    Args:
        plan: from `make_plan`.
        bar: shows what is being done.
        check: raises KeyboardInterrupt if there was one.

    Returns:
        What was found.

    Raises:
        NTKFusionError: if the model cannot be loaded, does not fit the task or the method, or a loss is no number.
    """
    bar.say("loading the model")
    original = load_model(plan.options.model)
    _prepare(plan, with_head(original, plan, plan.options.seeds[0]))
    seeds = []
    for seed in plan.options.seeds:
        folder = plan.folder / f"seed-{seed}"
        if not (folder / "result.json").exists():
            _run_seed(plan, original, seed, folder, bar, check)
        seeds.append(SeedResult(**_read(folder / "result.json")))
    return Finetuned(tuple(seeds), _conditions(plan, original), plan.task.metrics)


def with_head(model: Model, plan: FinetunePlan, seed: int) -> Model:
    """The model with its own head if that fits the task, else with a fresh one."""
    config, outputs = model.config, plan.task.num_labels
    if config.head == "sequence-classification" and config.num_labels == outputs:
        return model
    return with_new_head(model, "sequence-classification", num_labels=outputs, seed=seed)


def groups_of(plan: FinetunePlan, model: Model) -> tuple[Group, ...]:
    """Frozen parameters and rates, once the model is known."""
    if not plan.options.probe:
        return plan.groups
    head = head_paths(model)
    return (Group(lambda path: path not in head, 0.0), *plan.groups)


def _prepare(plan: FinetunePlan, model: Model) -> None:
    """Check the model and its memory, and mark the folder as ours."""
    data, groups = Data.of(model, plan.task, plan.recipe), groups_of(plan, model)
    check_training_memory(model, plan.recipe, max(data.buckets), groups)
    if plan.options.overwrite:
        shutil.rmtree(plan.folder, ignore_errors=True)
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / MARKER).touch()
    _write(plan.folder / REQUEST, request_of(plan.options))


def _run_seed(
    plan: FinetunePlan, original: Model, seed: int, folder: Path, bar: TrainingBar, check: Callable[[], None]
) -> None:
    model = _start(plan, original, seed, folder, bar)
    zero_shot = _zero_shot(plan, model, folder, bar)
    store = StateStore(folder / "state")
    forget_after(folder / "metrics.jsonl", store.step or 0)
    trackers: list[Tracker] = [bar.tracker(f"seed {seed}", _updates(plan), store.step or 0, check)]
    trackers += [JsonLines(folder / "metrics.jsonl")]
    trackers += [TensorBoard(folder / "tensorboard")] if plan.options.tensorboard else []
    try:
        found = fit(
            model,
            plan.task,
            plan.recipe,
            seed=seed,
            groups=groups_of(plan, model),
            trackers=trackers,
            store=store,
        )
    finally:
        store.close()
        for tracker in trackers:
            tracker.close()
    result = _result(seed, found, zero_shot, folder)
    _save(plan, found.model, result, folder)
    _write(folder / "result.json", dataclasses.asdict(result))
    for left in ("state", "start"):
        shutil.rmtree(folder / left, ignore_errors=True)


def _start(plan: FinetunePlan, original: Model, seed: int, folder: Path, bar: TrainingBar) -> Model:
    """The model before fine-tuning; where compression or tuning made it, it is kept for `--resume`."""
    options, start = plan.options, folder / "start"
    if plan.method is None:
        return with_head(original, plan, seed)
    if not start.exists():
        bar.say(f"seed {seed}: {options.compress} at width {options.width:g}")
        texts = plan.task.train.take(range(min(CALIBRATION_TEXTS, len(plan.task.train)))).first
        layers = options.layers or None
        small, _ = compress(original, plan.method, layers=layers, calibration=texts, seed=seed)
        small = with_head(small, plan, seed)
        if options.tune_layers:
            small = _tuned(plan, original, small, seed, folder, bar)
        save_model(small, start, format="ntkfusion", dtype="float32")
    return load_model(str(start))


def _tuned(plan: FinetunePlan, original: Model, small: Model, seed: int, folder: Path, bar: TrainingBar) -> Model:
    recipe, texts = layer_recipe(plan.recipe), plan.task.train
    (folder / TUNING_LINES).unlink(missing_ok=True)  # an interrupted one begins anew
    shown = bar.tracker(f"seed {seed}, layers", recipe.num_updates(len(texts)), 0)
    teacher, dev = with_head(original, plan, seed), plan.task.dev
    with closing(JsonLines(folder / TUNING_LINES)) as lines:
        tuned, report = tune_layers(small, teacher, texts, recipe, held_out=dev, seed=seed, trackers=[shown, lines])
    _write(folder / "tuning.json", {"loss_before": report.loss_before, "loss_after": report.loss_after})
    return tuned


def layer_recipe(recipe: Recipe) -> Recipe:
    """How layers are tuned: one pass at the same rate, constant, without decay and dropout (methods.md 1.5)."""
    changed = {"epochs": 1, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "dropout": False}
    return dataclasses.replace(recipe, optimizer="adamw", clip_norm=None, **changed)


def _zero_shot(plan: FinetunePlan, model: Model, folder: Path, bar: TrainingBar) -> dict[str, float]:
    path, recipe = folder / "zero_shot.json", plan.recipe
    if not path.exists():
        bar.say("scores before training")
        size = {"max_length": recipe.max_length, "batch_size": recipe.batch_size}
        _write(path, evaluate(model, plan.task.dev, plan.task.metrics, **size))
    return _read(path)


def _updates(plan: FinetunePlan) -> int:
    return plan.recipe.num_updates(len(plan.task.train))


def _result(seed: int, found: Fit, zero_shot: dict[str, float], folder: Path) -> SeedResult:
    lines = read_lines(folder / "metrics.jsonl")
    updates = [line for line in lines if "tokens" in line]
    return SeedResult(
        seed,
        zero_shot,
        _read(folder / "tuning.json") if (folder / "tuning.json").exists() else {},
        found.dev,
        found.test,
        list(found.history),
        found.best_step,
        found.num_updates,
        found.model.num_parameters,
        round(sum(line["seconds"] for line in updates), 3),
        int(sum(line["tokens"] for line in updates)),
    )


def _save(plan: FinetunePlan, model: Model, result: SeedResult, folder: Path) -> None:
    if plan.options.format == "none":
        return
    notes = {"command": command_line(plan.options, positional=("model",)), **dataclasses.asdict(result)}
    notes.pop("history")
    save_model(
        model,
        folder / "model",
        format=plan.options.format,
        merge=plan.options.merge,
        pad=True,
        notes=notes,
        overwrite=True,
    )


def _conditions(plan: FinetunePlan, original: Model) -> dict[str, Any]:
    task = plan.task
    sizes = {"train": len(task.train), "dev": len(task.dev), "test": 0 if task.test is None else len(task.test)}
    return {
        "command": command_line(plan.options, positional=("model",)),
        "model": describe_model(original),
        "task": {"name": task.name, "source": task.source, "examples": sizes, "metrics": list(task.metrics)},
        "recipe": dataclasses.asdict(plan.recipe),
        "environment": environment(),
    }


def _write(path: Path, values: Any) -> None:
    with new_files([path], overwrite=True) as (new,):
        new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
