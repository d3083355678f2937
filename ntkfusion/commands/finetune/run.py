"""The work of ``ntkfusion finetune``: compress, tune layers, fine-tune, once per seed; interrupted runs go on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax

from ntkfusion.checkpoints.companions import Companions
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import check_exportable, save_model
from ntkfusion.commands.conditions import command_line, describe_model, environment
from ntkfusion.commands.finetune.plan import REQUEST, RESULT, FinetunePlan, check_folder, request_of
from ntkfusion.commands.finetune.start import (
    SeedRun,
    check_trainable,
    groups_of,
    has_own_head,
    starting_model,
    tuning_report,
    with_head,
)
from ntkfusion.data.tasks.label_order import names_of_outputs
from ntkfusion.errors import OutputExistsError
from ntkfusion.models.model import Model
from ntkfusion.training.evaluation import predict, score
from ntkfusion.training.fine_tuning import Fit, fit
from ntkfusion.training.run import TokenizedTask
from ntkfusion.training.store import StateStore, model_digest, task_digest
from ntkfusion.training.trackers import JsonLines, TensorBoard, Tracker, forget_after, read_lines
from ntkfusion.utils.files import Json, mark, read_json, write_json
from ntkfusion.utils.progress import Progress


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
    """All seeds with their conditions.

    Attributes:
        plan: the request.
        seeds: what each gave.
        updates: seed → what was logged at every update.
        conditions: the circumstances.
        other_files: what became of the other files of the model's folder, one sentence each.
    """

    plan: FinetunePlan
    seeds: tuple[SeedResult, ...]
    updates: Mapping[int, Sequence[Json]]
    conditions: Json
    other_files: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the task, the one that decides first."""
        return self.plan.task.metrics


def run(plan: FinetunePlan, progress: Progress) -> Finetuned:
    """Fine-tune with every seed; what the folder holds of an interrupted run is not done again.

    Raises:
        NTKFusionError: if the model cannot be loaded, does not fit the task or the method, is not the one that an
            interrupted run had, or a loss is no number.
    """
    check_folder(plan.output, plan.options)  # again, now that no other process writes there
    progress.say("loading the model")
    original = load_model(plan.options.model, ignore_adapter=plan.options.ignore_adapter)
    start = with_head(original, plan, plan.options.seeds[0])
    data = _prepare(plan, original, start)
    seeds = []
    for seed in plan.options.seeds:
        folder = plan.folder / f"seed-{seed}"
        if not (folder / RESULT).exists():
            _run_seed(SeedRun(plan, original, data, seed, folder, progress))
        seeds.append(SeedResult(**read_json(folder / RESULT)))
    updates = {seed: updates_in(plan.folder / f"seed-{seed}") for seed in plan.options.seeds}
    return Finetuned(plan, tuple(seeds), updates, _conditions(plan, original, start), _other_files(plan, start))


def updates_in(folder: Path) -> list[Json]:
    """What was logged at every update of a seed, from its folder; evaluations are left out."""
    return [line for line in read_lines(folder / "metrics.jsonl") if "tokens" in line]


def _other_files(plan: FinetunePlan, model: Model) -> tuple[str, ...]:
    kind = plan.options.format
    return () if kind == "none" else tuple(Companions.of(model, kind).lines())


def _prepare(plan: FinetunePlan, original: Model, model: Model) -> TokenizedTask:
    """Check everything that the model decides, mark the folder as ours, and tokenise the examples."""
    check_exportable(model, plan.options.format)
    request = {**request_of(plan.options), "inputs": _inputs(plan, original)}
    if plan.options.resume:
        _check_inputs(plan, request["inputs"])
    data = TokenizedTask.of(model, plan.task, plan.recipe)
    if plan.method is None:  # else once it is compressed
        check_trainable(plan, model, data)
    if plan.options.overwrite:
        shutil.rmtree(plan.folder, ignore_errors=True)
    mark(plan.folder)
    write_json(plan.folder / REQUEST, request)
    return data


def _inputs(plan: FinetunePlan, original: Model) -> dict[str, str]:
    """What stands behind the names of model and files."""
    return {"the model": model_digest(original), "the examples": task_digest(plan.task)}


def _check_inputs(plan: FinetunePlan, now: dict[str, str]) -> None:
    path = plan.folder / REQUEST
    before = read_json(path).get("inputs", {}) if path.exists() else now
    if changed := [name for name in now if before.get(name) != now[name]]:
        raise OutputExistsError(
            f"{plan.folder} holds a run in which {' and '.join(changed)} had other contents; --resume goes on with the "
            "same ones: bring them back, pass --overwrite to begin anew, or choose another --out"
        )


def _run_seed(run: SeedRun) -> None:
    plan, folder = run.plan, run.folder
    model = starting_model(run)
    zero_shot = _zero_shot(run, model)
    with ExitStack() as stack:
        store = StateStore(folder / "state")
        stack.callback(store.close)
        trackers = _trackers(run, store, stack)
        groups = groups_of(plan, model)
        found = fit(
            model,
            plan.task,
            plan.recipe,
            seed=run.seed,
            groups=groups,
            trackers=trackers,
            store=store,
            data=run.data,
        )
    result = _result(run, found, zero_shot)
    _save(run, found.model, result)
    write_json(folder / RESULT, dataclasses.asdict(result))
    run.forget_steps()


def _trackers(run: SeedRun, store: StateStore, stack: ExitStack) -> list[Tracker]:
    """The live line, metrics.jsonl and, if asked for, event files; all forget what was not saved."""
    done = store.step or 0
    forget_after(run.folder / "metrics.jsonl", done)
    total = run.plan.recipe.num_updates(len(run.plan.task.train))
    trackers: list[Tracker] = [run.progress.tracker(f"seed {run.seed}", total, done)]
    trackers += [JsonLines(run.folder / "metrics.jsonl")]
    trackers += [TensorBoard(run.folder / "tensorboard", done)] if run.plan.options.tensorboard else []
    for tracker in trackers:
        stack.callback(tracker.close)
    return trackers


def _zero_shot(run: SeedRun, model: Model) -> dict[str, float]:
    path, dev = run.folder / "zero_shot.json", run.data.sets["dev"]
    if not path.exists():
        run.progress.say("scores before training")
        logits = predict(model, dev, batch_size=run.plan.recipe.part_size, buckets=run.data.buckets)
        write_json(path, score(run.plan.task.metrics, *dev.in_task_order(logits)))
    return read_json(path)


def _result(run: SeedRun, found: Fit, zero_shot: dict[str, float]) -> SeedResult:
    updates = updates_in(run.folder)
    return SeedResult(
        seed=run.seed,
        zero_shot=zero_shot,
        tuning=tuning_report(run.folder),
        dev=found.dev,
        test=found.test,
        history=list(found.history),
        best_step=found.best_step,
        num_updates=found.num_updates,
        parameters=found.model.num_parameters,
        seconds=round(sum(line["seconds"] for line in updates), 3),
        tokens=int(sum(line["tokens"] for line in updates)),
    )


def _save(run: SeedRun, model: Model, result: SeedResult) -> None:
    options = run.plan.options
    if options.format == "none":
        return
    notes = {"command": command_line(options), **dataclasses.asdict(result)}
    notes.pop("history")
    save_model(
        model,
        run.folder / "model",
        format=options.format,
        dtype="float32",  # the bits that were scored, however the original was stored
        merge=options.merge,
        pad=True,
        notes=notes,
        overwrite=True,
    )


def _conditions(plan: FinetunePlan, original: Model, model: Model) -> Json:
    task, own = plan.task, has_own_head(original, plan)
    outputs = names_of_outputs(model, task.labels) if own else task.labels
    sizes = {"train": len(task.train), "dev": len(task.dev), "test": 0 if task.test is None else len(task.test)}
    facts = {"name": task.name, "source": task.source, "examples": sizes, "metrics": list(task.metrics)}
    return {
        "command": command_line(plan.options),
        "model": describe_model(original),
        "head": "the checkpoint's own" if own else "fresh",
        "outputs": list(outputs),
        "task": {**facts, "labels": list(task.labels)},
        "recipe": dataclasses.asdict(plan.recipe),
        "environment": _environment(plan, original),
    }


def _environment(plan: FinetunePlan, original: Model) -> Json:
    if plan.recipe.precision != "float32":
        return environment() | {"precision": f"{plan.recipe.precision}, parameters and scores float32"}
    with jax.default_matmul_precision("highest"):  # as `fit` trains
        return environment(original.params)
