"""One run: measure, score before training, train, score after it; and linearised training against the real one."""

from __future__ import annotations

import dataclasses
import time
from itertools import islice

from experiments.common.store import Job, Result, stored_repr
from experiments.kernel_vs_finetuning.lab import TaskLab
from experiments.kernel_vs_finetuning.measures import MEASURES, Measures
from experiments.kernel_vs_finetuning.options import NONE, FinetuningOptions
from ntkfusion.compression.registry import build_method
from ntkfusion.models.model import Model
from ntkfusion.training.batches import minibatches
from ntkfusion.training.evaluation import evaluate
from ntkfusion.training.fine_tuning import fit
from ntkfusion.training.linearised import curve_distance, linearised_training
from ntkfusion.training.run import TokenizedTask


@dataclasses.dataclass(frozen=True)
class RunCase:
    """What is trained: a method at a width, with a seed, on a task."""

    task: str
    method: str
    width: float
    seed: int

    @property
    def name(self) -> str:
        """For people and files."""
        size = "" if self.method == NONE else f"_width{self.width:g}"
        return f"{self.task}_{self.method}{size}_seed{self.seed}"


def cases(options: FinetuningOptions) -> list[RunCase]:
    """Every run, the original's first: zero-shot scores need it."""
    found = []
    for task in options.tasks:
        for seed in options.seeds:
            found += [RunCase(task, NONE, 1.0, seed)]
            names = [name for name in options.methods if name != NONE]
            found += [RunCase(task, name, width, seed) for width in options.widths for name in names]
    return found


def job(options: FinetuningOptions, lab: TaskLab, case: RunCase) -> Job:
    """The run with everything its result depends on."""
    measured = {"measured on": [options.tokens, options.kernel_texts, options.kernel_length]}
    return Job("runs", case.name, settings(options, lab, case) | measured)


def settings(options: FinetuningOptions, lab: TaskLab, case: RunCase) -> dict[str, object]:
    """What training depends on."""
    return {
        "model": options.model,
        "examples": lab.digest,
        "recipe": dataclasses.asdict(options.recipe(case.task)),
        "method": case.method if case.method == NONE else stored_repr(build_method(case.method, case.width)),
        "seed": case.seed,
    }


def run(lab: TaskLab, measures: Measures, case: RunCase) -> Result:
    """Measure and train.

    Returns:
        Errors before training (`MEASURES`); ``zero_shot``: the dev score of the *trained* original, compressed and not
        trained again; ``dev``: that of the compressed pretrained model after training; ``history``, ``parameters``,
        ``seconds``.
    """
    start, task = time.perf_counter(), lab.task
    recipe = lab.options.recipe(case.task)
    model = lab.compressed(case.method, case.width, case.seed)
    found: Result = dict.fromkeys(MEASURES, 0.0) if case.method == NONE else measures.of(model)
    fitted = fit(lab.with_head(model, case.seed), task, recipe, seed=case.seed)
    if case.method == NONE:
        lab.keep_trained(fitted.model, case.seed)
        found["zero_shot"] = fitted.dev
    else:
        found["zero_shot"] = _score(lab, lab.compress(lab.trained(case.seed), case.method, case.width, case.seed))
    found |= {"dev": fitted.dev, "history": list(fitted.history), "parameters": fitted.model.num_parameters}
    return found | {"metric": task.metrics[0], "seconds": time.perf_counter() - start}


def _score(lab: TaskLab, model: Model) -> dict[str, float]:
    recipe = lab.options.recipe(lab.name)
    sizes = {"max_length": recipe.max_length, "batch_size": recipe.batch_size}
    return evaluate(model, lab.task.dev, lab.task.metrics, **sizes)


def curve_cases(options: FinetuningOptions) -> list[RunCase]:
    """The first task, width and seed."""
    task, width, seed = options.tasks[0], options.widths[0], options.seeds[0]
    return [RunCase(task, name, 1.0 if name == NONE else width, seed) for name in options.linearised]


def curve_job(options: FinetuningOptions, lab: TaskLab, case: RunCase) -> Job:
    """The curves with everything they depend on."""
    return Job("curves", case.name, settings(options, lab, case) | {"updates": options.linearised_updates})


def curves(lab: TaskLab, case: RunCase) -> Result:
    """Losses of the real and of the linearised model on the same batches, and how far they are apart."""
    recipe = lab.options.recipe(case.task)
    model = lab.with_head(lab.compressed(case.method, case.width, case.seed), case.seed)
    data, count = TokenizedTask.of(model, lab.task, recipe), lab.options.linearised_updates
    batches = minibatches(data.sets["train"], recipe, data.buckets, seed=case.seed)
    arrays = [batch.arrays for batch in islice(batches, count)]
    total = recipe.num_updates(len(lab.task.train))
    found = linearised_training(model, arrays, recipe, is_regression=lab.task.is_regression, num_updates=total)
    real, predicted = found.real.losses, found.predicted.losses
    return {
        "real": real.tolist(),
        "predicted": predicted.tolist(),
        "distance": curve_distance(real, predicted),
        "distance of the first half": curve_distance(real[: len(real) // 2], predicted[: len(real) // 2]),
    }
